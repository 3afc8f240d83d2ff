// The squared norm of all gradients, for max_grad_norm and skip_nonfinite. It updates nothing.
#pragma once

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class T, unsigned kVariant>
struct GradNorm : RuleDefaults {
  static constexpr const char* kName = "grad_norm";
  static constexpr int kHypers = 0, kStates = 0, kSums = 1;
  static constexpr bool kEmits = true, kReadsParam = false, kMovesParam = false;

  using opmath = T;
  struct Scalars {};

  static FUSEDSTEP_HD Scalars scalars(const double*, std::int64_t, double*, const double*) {
    return {};
  }

  template <class V>
  static FUSEDSTEP_HD void update(const Scalars&, V g, V&, V*, V* out) {
    out[0] = g;
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
