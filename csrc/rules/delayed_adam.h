// Delayed Adam. Savarese et al., "Domain-Independent Dominance of Adaptive Methods" (2021), section
// 8: the second moment of the step before, so that it does not depend on the gradient it divides.
// Departure: coordinates whose second moment is still 0 take no step.
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct DelayedAdam : RuleDefaults {
  static constexpr const char* kName = "delayed_adam";
  static constexpr int kHypers = 5, kStates = 2;

  using opmath = T;
  struct Scalars {
    T coupled_decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps;
  };

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double*) {
    const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
    const double bias_correction1 = 1.0 - power(beta1, t);
    const double bias_correction2 = 1.0 - power(beta2, t - 1);  // of v as the last step left it
    return {T(hyper[4]),
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
    // g += wd p
    g = select(s.coupled_decay != T(0), g + s.coupled_decay * p, g);
    // m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1);
    // p -= lr sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2))
    p = select(v != T(0), p - div(s.step_size * m, sqrt(v) + s.eps), p);
    // v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, s.beta2, s.one_minus_beta2);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
