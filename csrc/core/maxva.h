// The weighted moments that MAdam and LaMAdam share (MaxVA paper, eq. 7 and Algorithm 1, lines
// 5-9).
//
// The paper keeps the sums u~ = w u and v~ = w v. Here: the mean u, the variance s = v - u^2 and
// q = 1 - w, the running product of the betas. The same real numbers without cancellation.
#pragma once

#include <cstdint>

#include "core/numerics.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T>
struct MaxVA {
  T lo, hi, delta;
  bool faded;  // every q is zero, and stays so

  // Where q is less, 1 - q is 1, and it is stored as zero; `bound` is at or above every q.
  static constexpr double kFaded = sizeof(T) == sizeof(float) ? 0x1p-25 : 0x1p-54;
  static FUSEDSTEP_HD bool is_faded(double bound) { return bound < kFaded; }

  static FUSEDSTEP_HD MaxVA scalars(double lo, double hi, double init, double delta, std::int64_t t,
                                    double& bound) {
    // beta_1 = beta2_init; by default hi, or 0.9 where hi >= 1
    init = select(init < 0.0, select(hi < 1.0, hi, 0.9), init);
    lo = select(t == 1, init, lo);
    hi = select(t == 1, init, hi);
    const bool faded = is_faded(bound);
    // bound *= hi as rounded, with an allowance for the rounding of beta q
    bound = bound * (double(T(hi)) * (1.0 + 0x1p-22));
    return {T(lo), T(hi), T(delta), faded};
  }

  // Moves u, s and q one step on and returns w.
  template <class V>
  FUSEDSTEP_HD V update(V g, V& u, V& s, V& q) const {
    const T one = T(1);
    // e = g - u,  d = e^2
    const V e = g - u;
    const V d = e * e;
    // beta = clip((d + s) / ((2 - q) d + q s + delta), lo, hi)
    const V ratio = div(d + s, (T(2) - q) * d + q * s + delta);
    const V beta = clip(ratio, lo, hi);
    // q = beta q,  w = 1 - q,  gamma = (1 - beta) / w
    V gamma = one - beta;
    if (!faded) {  // else w is one: dividing by it changes no bit
      q = beta * q;
      q = select(q < T(kFaded), V(T(0)), q);
      gamma = div(gamma, one - q);
    }
    // u += gamma e
    u = u + gamma * e;
    // s = (1 - gamma)(s + gamma d)
    s = (one - gamma) * (s + gamma * d);
    return one - q;
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
