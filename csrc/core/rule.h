// What an update rule must provide. Engines see this and nothing else; they never name a rule.
//
//   template <class T, unsigned kVariant> struct Rule   T: opmath, float or double
//     kName, kVariants           stem; 2^(number of template constants)
//     kHypers, kStates, kCarried columns of a hyper-parameter row (0 is maximize), of memory per
//                                element (exp_avg first), of float64 scalars per tensor
//     kFading                    the state that, once zero everywhere, stays zero, or -1
//     faded(carried)             whether the carried scalars prove that it is zero
//     scalars(hyper, t, carried) float64 in, opmath out (N6); moves carried one step on
//     update(scalars, g, p, state)  one element in registers
//
// Hyper-parameters, states and carried scalars stand in the order in which the front end
// (python/fusedstep/<algo>.py) names them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/tensor_lists.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class Rule>
constexpr bool check_rule() {
  using T = typename Rule::opmath;
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "a rule computes in float or double");
  static_assert(Rule::kHypers >= 1, "hyper-parameter 0 of every rule is maximize");
  static_assert(Rule::kStates >= 1, "state 0 of every rule is the one that state_dtype may narrow");
  static_assert(Rule::kCarried <= kMaxCarried, "raise kMaxCarried for this rule");
  static_assert(Rule::kFading != 0 && Rule::kFading < Rule::kStates,
                "the fading state is -1 or the index of an opmath state");
  static_assert(std::is_trivially_copyable_v<typename Rule::Scalars>,
                "scalars travel by value, through shared memory too");
  static_assert(std::is_same_v<decltype(Rule::scalars(nullptr, std::int64_t(1), nullptr)),
                               typename Rule::Scalars>,
                "scalars(hyper, t, carried) returns Scalars");
  static_assert((Rule::kVariants & (Rule::kVariants - 1)) == 0, "kVariants is a power of two");
  return true;
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
