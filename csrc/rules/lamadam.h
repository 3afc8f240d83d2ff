// LaMAdam. Zhu et al., "MaxVA: Fast Adaptation of Step Sizes by Maximizing Observed Variance of
// Gradients" (2020), Algorithm 2. Departures: core/maxva.h; weight decay, amsgrad (dead code in the
// released file). The forms differ in scalars only: both are data, not template constants.
#pragma once

#include "core/maxva.h"
#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct LaMAdam : RuleDefaults {
  static constexpr bool kAmsgrad = kVariant & 1u;
  static constexpr const char* kName = "lamadam";
  static constexpr unsigned kVariants = 2;
  static constexpr int kHypers = 10, kStates = kAmsgrad ? 5 : 4, kCarried = 2, kFading = 3;

  using opmath = T;
  struct Scalars {
    T decay, coupled_decay, beta1, c_in, c_out, eps;
    MaxVA<T> moments;
  };

  static FUSEDSTEP_HD bool faded(const double* carried) { return MaxVA<T>::is_faded(carried[0]); }

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double* carried) {
    const double lr = hyper[0], beta1 = hyper[1], eps = hyper[5];
    const double weight_decay = hyper[6], decoupled = hyper[7], released = hyper[9];
    // L = beta1 L + (1 - beta1) lr
    carried[1] = ema(carried[1], lr, beta1, 1.0 - beta1);
    const double warm = select(lr != 0.0 && carried[1] != 0.0, lr / carried[1], 0.0);
    return {T(select(decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
            T(select(decoupled != 0.0, 0.0, weight_decay)),
            T(beta1),
            T(select(released != 0.0, (1.0 - beta1) * lr, 1.0 - beta1)),
            T(select(released != 0.0, warm, lr / (1.0 - power(beta1, t)))),
            T(eps),
            MaxVA<T>::scalars(hyper[2], hyper[3], hyper[4], hyper[8], t, carried[0])};
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state) {
    V &m = state[0], &u = state[1];
    // decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay;
    g = select(s.coupled_decay != T(0), g + s.coupled_decay * p, g);
    // u, s by maximal variation;  v = s + u^2
    s.moments.update(g, u, state[2], state[3]);
    V v = state[2] + u * u;
    // vmax = max(vmax, v)
    if constexpr (kAmsgrad) v = state[4] = max(state[4], v);
    // m = beta1 m + c_in g / (sqrt(v) + eps)
    m = s.beta1 * m + s.c_in * div(g, sqrt(v) + s.eps);
    // p -= c_out m
    p = p - s.c_out * m;
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
