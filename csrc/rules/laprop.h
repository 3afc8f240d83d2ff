// LaProp. Ziyin et al., "LaProp: Separating Momentum and Adaptivity in Adam" (2020), Algorithms
// 1-4: LaProp, LaPropW (weight decay), AmsProp (amsgrad), Centered LaProp. Departures: the step is
// multiplied through by sqrt(1 - beta2^t); centered keeps mean and variance instead of the moments;
// no decay at lr = 0.
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct LaProp : RuleDefaults {
  static constexpr bool kAmsgrad = kVariant & 1u, kCentered = kVariant & 2u;
  static constexpr const char* kName = "laprop";
  static constexpr unsigned kVariants = 4;
  static constexpr int kHypers = 7, kStates = 2 + kCentered + kAmsgrad, kCarried = 2;

  using opmath = T;
  struct Scalars {
    T decay, beta1, beta2, one_minus_beta2, c_in, c_out, eps_in, eps_out, centering;
  };

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double* carried) {
    const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
    const double weight_decay = hyper[4], centered_start = hyper[5], released = hyper[6];
    // L1 = beta1 L1 + (1 - beta1) lr,  L2 = beta2 L2 + (1 - beta2)
    carried[0] = ema(carried[0], lr, beta1, 1.0 - beta1);
    carried[1] = ema(carried[1], 1.0, beta2, 1.0 - beta2);
    const double warm = select(lr != 0.0 && carried[0] != 0.0, lr / carried[0], 0.0);
    const double correction2 = select(released != 0.0, carried[1], 1.0 - power(beta2, t));
    return {T(select(lr != 0.0, 1.0 - weight_decay, 1.0)),
            T(beta1),
            T(beta2),
            T(1.0 - beta2),
            T((1.0 - beta1) * lr * sqrt(correction2)),
            T(select(released != 0.0, warm, 1.0 / (1.0 - power(beta1, t)))),
            T(select(released != 0.0, 0.0, eps * correction2)),
            T(select(released != 0.0, eps * sqrt(correction2), 0.0)),
            T(select(double(t) > centered_start, 1.0, 0.0))};
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state) {
    V& m = state[0];
    V n;
    if constexpr (kCentered) {
      V &c = state[1], &variance = state[2];
      // e = g - c,  c += (1 - beta2) e,  var = beta2 (var + (1 - beta2) e^2)
      const V e = g - c;
      c = c + s.one_minus_beta2 * e;
      variance = s.beta2 * (variance + s.one_minus_beta2 * (e * e));
      // n = var once centring has begun, else v = var + c^2
      n = select(s.centering != T(0), variance, variance + c * c);
    } else {
      // v = beta2 v + (1 - beta2) g^2
      n = state[1] = ema(state[1], g * g, s.beta2, s.one_minus_beta2);
    }
    if constexpr (kAmsgrad) {
      // nmax = max(nmax, n), with centered only once centring has begun
      V& largest = state[kStates - 1];
      const V larger = max(largest, n);
      largest = select(!kCentered || s.centering != T(0), larger, largest);
      n = select(!kCentered || s.centering != T(0), larger, n);
    }
    // m = beta1 m + (1 - beta1) lr g / sqrt(n/bc2 + eps)   (released: eps outside of the root)
    m = s.beta1 * m + div(s.c_in * g, sqrt(n + s.eps_in) + s.eps_out);
    // p -= m / bc1,  p *= 1 - wd unless lr is 0
    p = (p - s.c_out * m) * s.decay;
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
