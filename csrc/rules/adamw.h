// Adam, AdamW. Kingma & Ba 2015, Algorithm 1; Loshchilov & Hutter 2019, Algorithm 2; AMSGrad: Reddi
// et al. 2018. Departure: the step is multiplied through by sqrt(1 - beta2^t), one division less.
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct AdamW : RuleDefaults {
  static constexpr bool kAmsgrad = kVariant & 1u;
  static constexpr const char* kName = "adamw";
  static constexpr unsigned kVariants = 2;
  static constexpr int kHypers = 6, kStates = kAmsgrad ? 3 : 2;

  using opmath = T;
  struct Scalars {
    T decay, coupled_decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps;
  };

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double*) {
    const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
    const double weight_decay = hyper[4], decoupled = hyper[5];
    const double bias_correction1 = 1.0 - power(beta1, t);
    const double bias_correction2 = 1.0 - power(beta2, t);
    return {T(select(decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
            T(select(decoupled != 0.0, 0.0, weight_decay)),
            T(beta1),
            T(1.0 - beta1),
            T(beta2),
            T(1.0 - beta2),
            T(lr * sqrt(bias_correction2) / bias_correction1),
            T(eps * sqrt(bias_correction2))};
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state) {
    V &m = state[0], &v = state[1];
    // decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay;
    g = select(s.coupled_decay != T(0), g + s.coupled_decay * p, g);
    // m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1);
    // v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, s.beta2, s.one_minus_beta2);
    // vmax = max(vmax, v)
    V second_moment = v;
    if constexpr (kAmsgrad) second_moment = state[2] = max(state[2], v);
    // p -= lr sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2))
    p = p - div(s.step_size * m, sqrt(second_moment) + s.eps);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
