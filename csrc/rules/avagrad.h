// AvaGrad. Savarese et al., "Domain-Independent Dominance of Adaptive Methods" (2021), Algorithm 1.
// The mean of eta^2 is summed one step ahead, in the pass that moves v. Departure: the released
// form is multiplied through by the root of its bias correction.
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct AvaGrad : RuleDefaults {
  static constexpr bool kReleased = kVariant & 1u;
  static constexpr bool kSurvey = kVariant & 2u;  // only sums the eta^2 of v as it is
  static constexpr const char* kName = "avagrad";
  static constexpr unsigned kVariants = 3;
  static constexpr int kHypers = 7, kStates = 2, kSums = 2;
  static constexpr bool kEmits = true, kCounted = true;
  static constexpr bool kKeepsAbsent = !kReleased, kServesAll = kSurvey;
  static constexpr bool kReadsGrad = !kSurvey, kReadsParam = !kSurvey;
  static constexpr bool kMovesParam = !kSurvey;
  static constexpr int kReadOnly = kSurvey ? 2 : 0;

  using opmath = T;
  struct Scalars {
    T decay, coupled_decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps, moves;
    T eta_scale, eta_eps, zero_counts;
  };

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double*,
                                      const double* sums) {
    const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
    const double weight_decay = hyper[4], decoupled = hyper[5], skip_zero = hyper[6];
    // mean of eta^2; 1/eps^2 where no coordinate was counted
    const double mean = select(sums[1] > 0.0, sums[0] / sums[1], 1.0 / (eps * eps));
    // paper: no bias correction; released: the first step only accumulates
    const double bias_correction1 = kReleased ? 1.0 - power(beta1, t) : 1.0;
    const double previous = kReleased ? 1.0 - power(beta2, t - 1) : 1.0;
    const double current = kReleased ? 1.0 - power(beta2, t) : 1.0;
    const bool moves = !kReleased || t > 1;
    return {T(select(moves && decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
            T(select(decoupled != 0.0, 0.0, weight_decay)),
            T(beta1),
            T(1.0 - beta1),
            T(beta2),
            T(1.0 - beta2),
            T(lr * sqrt(previous) / bias_correction1 / sqrt(mean)),
            T(eps * sqrt(previous)),
            T(select(moves, 1.0, 0.0)),
            T(sqrt(current)),
            T(eps * sqrt(current)),
            T(1.0 - skip_zero)};
  }

  // out: eta of a second moment, and 1 where it is counted
  template <class V>
  static FUSEDSTEP_HD void emit(const Scalars& s, V v, V* out) {
    const V counted = select(v == T(0), V(s.zero_counts), V(T(1)));
    // eta = 1 / (sqrt(v)/sqrt(bc2) + eps)
    out[0] = select(counted != T(0), div(V(s.eta_scale), sqrt(v) + s.eta_eps), V(T(0)));
    out[1] = counted;
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state, V* out) {
    V &m = state[0], &v = state[1];
    if constexpr (kReleased || kSurvey) emit(s, v, out);
    if constexpr (kSurvey) return;
    // decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay;
    g = select(s.coupled_decay != T(0), g + s.coupled_decay * p, g);
    // m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1);
    // p -= lr / sqrt(mean eta^2) m / (sqrt(v) + eps), v as the last step left it
    p = select(s.moves != T(0), p - div(s.step_size * m, sqrt(v) + s.eps), p);
    // v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, s.beta2, s.one_minus_beta2);
    if constexpr (!kReleased) emit(s, v, out);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
