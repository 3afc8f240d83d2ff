// What an update rule must provide. Engines see this and nothing else; they never name a rule.
//
//   template <class T, unsigned kVariant> struct Rule : RuleDefaults   T: opmath, float or double
//     kName                      stem
//     kHypers, kStates           columns of a row of hyper-parameters, of memory per element
//                                (first the one that may be narrower, exp_avg)
//     scalars(hyper, t, carried) float64 in, opmath out (N6); moves carried one step on
//     update<V>(scalars, g, p, state)  in registers; V: one element, opmath, or a pack of them
//
// A rule with kSums > 0 takes part in sums of squares over a segment of the parameters (a tensor, a
// group, all: the front end says which). Its functions have one argument more:
//     scalars(hyper, t, carried, sums)  float64 [kSums], as they were before this launch; only
//                                       passes that move parameters may use them
//     update(scalars, g, p, state, out)  out [kSums]: with kEmits, what this element adds, squared
//
// Hyper-parameters, states and carried scalars stand in the order in which the front end
// (python/fusedstep/<algo>.py) names them.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/launch.h"

namespace fusedstep {

// What a rule is unless it says otherwise.
struct RuleDefaults {
  static constexpr unsigned kVariants = 1;  // variants 0, 1, ...: bits, template constants
  static constexpr int kCarried = 0;        // float64 scalars per tensor
  static constexpr int kFading = -1;  // the state that, once zero everywhere, stays zero, or -1
  static constexpr int kSums = 0;
  static constexpr bool kEmits = false;
  static constexpr bool kCounted = false;      // the last sum counts elements, 1 or 0 each
  static constexpr bool kKeepsAbsent = false;  // without a gradient, a tensor keeps its share
  // What memory the pass touches. One that moves no parameter is no step: counts and carried
  // scalars stay.
  static constexpr bool kReadsGrad = true, kReadsParam = true;
  static constexpr bool kMovesParam = true;
  static constexpr int kReadOnly = 0;        // the last states, which are not written
  static constexpr bool kServesAll = false;  // runs on tensors without a gradient, too
  static constexpr bool kCountsAll = false;  // their counts advance with the others'
  // Whether the carried scalars prove that the fading state is zero.
  static FUSEDSTEP_HD bool faded(const double*) { return false; }
};

// The same for whoever chooses a kernel at run time, or compares it with another spelling.
struct KernelFacts {
  const char* rule;
  unsigned variant;
  bool float64;
  int hypers, states, carried, fading, sums;
  bool emits, counted;
  bool keeps_absent, reads_grad, reads_param, moves_param;
  int read_only;
  bool serves_all, counts_all;
};

inline namespace FUSEDSTEP_LEVEL {

// An engine asks for these when it adds a rule: here a rule is checked.
template <class Rule>
constexpr KernelFacts facts(unsigned variant) {
  using T = typename Rule::opmath;
  static_assert(std::is_base_of_v<RuleDefaults, Rule>, "a rule inherits RuleDefaults");
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "a rule computes in float or double");
  static_assert(Rule::kCarried <= kMaxCarried, "raise kMaxCarried for this rule");
  static_assert(Rule::kSums <= kMaxSums, "raise kMaxSums for this rule");
  static_assert(Rule::kSums > 0 || !Rule::kEmits, "a rule that emits squares has kSums > 0");
  static_assert(Rule::kReadOnly <= Rule::kStates, "kReadOnly is more than kStates");
  static_assert(Rule::kFading != 0 && Rule::kFading < Rule::kStates,
                "the fading state is -1 or the index of an opmath state");
  static_assert(std::is_trivially_copyable_v<typename Rule::Scalars>,
                "scalars travel by value, through shared memory too");
  return {Rule::kName,
          variant,
          sizeof(T) == sizeof(double),
          Rule::kHypers,
          Rule::kStates,
          Rule::kCarried,
          Rule::kFading,
          Rule::kSums,
          Rule::kEmits,
          Rule::kCounted,
          Rule::kKeepsAbsent,
          Rule::kReadsGrad,
          Rule::kReadsParam,
          Rule::kMovesParam,
          Rule::kReadOnly,
          Rule::kServesAll,
          Rule::kCountsAll};
}

template <class Rule>
FUSEDSTEP_HD typename Rule::Scalars scalars_of(const double* hyper, std::int64_t t, double* carried,
                                               const double* sums) {
  if constexpr (Rule::kSums > 0)
    return Rule::scalars(hyper, t, carried, sums);
  else
    return Rule::scalars(hyper, t, carried);
}

template <class Rule, class V>
FUSEDSTEP_HD void update_of(const typename Rule::Scalars& s, V g, V& p, V* state, V* out) {
  if constexpr (Rule::kSums > 0)
    Rule::update(s, g, p, state, out);
  else
    Rule::update(s, g, p, state);
}

template <class Rule>
constexpr bool kReadsSums = Rule::kSums > 0 && Rule::kMovesParam;

// Whether a segment's sums stay where their count is 0: then nobody took part in the step.
template <class Rule>
constexpr bool kKeepsSums = Rule::kCounted && !Rule::kKeepsAbsent;

// States that are written; the others follow them.
template <class Rule>
constexpr int kMoved = Rule::kStates - Rule::kReadOnly;

// Hands every variant of a rule, in both opmaths, to `Engine::add<Rule, variant>()`.
template <template <class, unsigned> class Rule, class Engine>
struct RegisterRule {
  RegisterRule() { all(std::make_integer_sequence<unsigned, Rule<float, 0>::kVariants>()); }
  template <unsigned... kVariant>
  static void all(std::integer_sequence<unsigned, kVariant...>) {
    (Engine::template add<Rule<float, kVariant>, kVariant>(), ...);
    (Engine::template add<Rule<double, kVariant>, kVariant>(), ...);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
