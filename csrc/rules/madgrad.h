// MADGRAD. Defazio & Jelassi, "Adaptivity without Compromise" (2021), Algorithm 1. Its k is t - 1,
// the same for all parameters. Departures: with momentum 0, coordinates without a gradient keep p;
// a first step with lr 0, where z = p, keeps p to the bit.
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct MADGRAD : RuleDefaults {
  static constexpr bool kMomentum = !(kVariant & 1u);  // without it x0 is recovered from p
  static constexpr const char* kName = "madgrad";
  static constexpr unsigned kVariants = 2;
  static constexpr int kHypers = 6, kStates = kMomentum ? 3 : 2;
  static constexpr int kReadOnly = kMomentum ? 1 : 0;  // x0
  static constexpr bool kCountsAll = true;

  using opmath = T;
  struct Scalars {
    T decoupled_decay, coupled_decay, momentum, one_minus_momentum, lam, eps;
  };

  static FUSEDSTEP_HD Scalars scalars(const double* hyper, std::int64_t t, double*) {
    const double weight_decay = hyper[2], eps = hyper[3], decoupled = hyper[4], released = hyper[5];
    // a first step with lr 0: c = 0
    const double momentum = select(t == 1 && hyper[0] == 0.0, 1.0, hyper[1]);
    // released: lr + eps, unless lr is 0
    const double lr = select(released != 0.0 && hyper[0] != 0.0, hyper[0] + eps, hyper[0]);
    return {T(select(decoupled != 0.0, lr * weight_decay, 0.0)),
            T(select(decoupled != 0.0, 0.0, weight_decay)),
            T(momentum),
            T(1.0 - momentum),
            T(lr * sqrt(double(t))),
            T(eps)};
  }

  // x0 - sum / (cbrt(nu) + eps)
  template <class V>
  static FUSEDSTEP_HD V dual(V x0, V sum, V nu, T eps) {
    const V root = cbrt(nu) + eps;
    return select(root == T(0), x0, x0 - div(sum, root));
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars& s, V g, V& p, V* state) {
    V &nu = state[0], &sum = state[1];
    const V before = p;
    // coupled: g += wd p
    g = select(s.coupled_decay != T(0), g + s.coupled_decay * p, g);
    // momentum 0: x0 = p + s / (cbrt(nu) + eps)
    V x0;
    if constexpr (kMomentum)
      x0 = state[2];
    else
      x0 = dual(p, -sum, nu, s.eps);
    // nu += lam g^2,  s += lam g
    nu = nu + s.lam * (g * g);
    sum = sum + s.lam * g;
    // z = x0 - s / (cbrt(nu) + eps)
    const V z = dual(x0, sum, nu, s.eps);
    // p = (1 - c) p + c z, p where c is 0
    if constexpr (kMomentum)
      p = select(s.one_minus_momentum == T(0), p, ema(p, z, s.momentum, s.one_minus_momentum));
    else
      p = select(g == T(0), p, z);
    // decoupled: p -= lr wd p, of p before the step
    p = select(s.decoupled_decay != T(0), p - s.decoupled_decay * before, p);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
