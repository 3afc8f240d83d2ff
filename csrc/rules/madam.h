// MAdam. Zhu et al., "MaxVA: Fast Adaptation of Step Sizes by Maximizing Observed Variance of
// Gradients" (2020), Algorithm 1. Departures: core/maxva.h; weight decay, amsgrad.
#pragma once

#include "core/maxva.h"
#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct MAdam : RuleDefaults {
  static constexpr bool kAmsgrad = kVariant & 1u, kReleased = kVariant & 2u;
  static constexpr const char* kName = "madam";
  static constexpr unsigned kVariants = 4;
  static constexpr int kHypers = 9, kStates = kAmsgrad ? 5 : 4, kCarried = 1, kFading = 3;

  using opmath = T;
  struct Scalars {
    T decay, coupled_decay, beta1, one_minus_beta1, step_size, eps;
    MaxVA<T> moments;
  };

  static FUSEDSTEP_HD bool faded(const double* carried) { return MaxVA<T>::is_faded(carried[0]); }

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double* carried) {
    const double lr = hyper[0], beta1 = hyper[1], eps = hyper[5];
    const double weight_decay = hyper[6], decoupled = hyper[7];
    return {T(select(decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
            T(select(decoupled != 0.0, 0.0, weight_decay)),
            T(beta1),
            T(1.0 - beta1),
            T(lr / (1.0 - power(beta1, t))),
            T(eps),
            MaxVA<T>::scalars(hyper[2], hyper[3], hyper[4], hyper[8], t, carried[0])};
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state) {
    V &m = state[0], &u = state[1];
    // decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay;
    g = select(s.coupled_decay != T(0), g + s.coupled_decay * p, g);
    // u, s, w by maximal variation;  v = s + u^2
    const V w = s.moments.update(g, u, state[2], state[3]);
    V v = state[2] + u * u;
    // vmax = max(vmax, v)
    if constexpr (kAmsgrad) v = state[4] = max(state[4], v);
    // m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1);
    if (kReleased || s.moments.faded) {  // once w is one, the forms are one
      // p -= lr/bc1 m / (sqrt(v) + eps)
      p = p - div(s.step_size * m, sqrt(v) + s.eps);
    } else {
      // p -= lr sqrt(w)/bc1 m / (sqrt(w v) + eps)
      p = p - div(s.step_size * sqrt(w) * m, sqrt(w * v) + s.eps);
    }
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
