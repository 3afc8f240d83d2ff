// LAMB. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
// (2020), Algorithm 2. Two passes: the first moves the moments and sums squares of p and u per
// tensor, the second computes u again, from the moments as stored, and moves p. Departure: u is
// multiplied through by sqrt(1 - beta2^t).
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct LAMB : RuleDefaults {
  static constexpr bool kSecond = kVariant & 1u;
  static constexpr const char* kName = "lamb";
  static constexpr unsigned kVariants = 2;
  static constexpr int kHypers = 6, kStates = 2, kSums = 2;
  static constexpr bool kEmits = !kSecond, kReadsGrad = !kSecond;
  static constexpr bool kMovesParam = kSecond;
  static constexpr int kReadOnly = kSecond ? 2 : 0;

  using opmath = T;
  struct Scalars {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, u_scale, eps, wd, rounds, step_size;
  };

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double*,
                                      const double* sums) {
    const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
    const double weight_decay = hyper[4];
    const double bias_correction1 = 1.0 - power(beta1, t);
    const double bias_correction2 = 1.0 - power(beta2, t);
    // ratio = ||p|| / ||u||
    const bool scaled = weight_decay != 0.0 && sums[0] > 0.0 && sums[1] > 0.0;
    const double ratio = select(scaled, sqrt(sums[0]) / sqrt(sums[1]), 1.0);
    return {T(beta1),
            T(1.0 - beta1),
            T(beta2),
            T(1.0 - beta2),
            T(sqrt(bias_correction2) / bias_correction1),
            T(eps * sqrt(bias_correction2)),
            T(weight_decay),
            T(hyper[5]),
            T(lr * ratio)};
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state, V* out) {
    V &m = state[0], &v = state[1];
    if constexpr (!kSecond) {
      // m = beta1 m + (1 - beta1) g, as it will be stored
      m = ema(m, g, s.beta1, s.one_minus_beta1);
      m = select(s.rounds != T(0), round_bf16(m), m);
      // v = beta2 v + (1 - beta2) g^2
      v = ema(v, g * g, s.beta2, s.one_minus_beta2);
    }
    // u = sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2)) + wd p
    const V u = div(s.u_scale * m, sqrt(v) + s.eps) + s.wd * p;
    if constexpr (kSecond) {
      // p -= lr ratio u
      p = p - s.step_size * u;
    } else {
      out[0] = p;
      out[1] = u;
    }
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
