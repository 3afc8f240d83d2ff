// What is known of a tensor before an element is touched, and what becomes of its count after.
#pragma once

#include <limits>

#include "core/rule.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class Rule>
struct Prologue {
  typename Rule::Scalars scalars;
  typename Rule::opmath coefficient;  // what the gradient is multiplied by: clipping, maximize
  std::int64_t t;                     // the count of this step, from 1
  double carried[kMaxCarried];        // their values after this step
  bool faded;                         // the fading state is zero everywhere
};

// A tensor's count, and its j-th carried scalar.
FUSEDSTEP_HD std::int64_t& count_of(const Launch& launch, std::int64_t tensor) {
  return *pointer<std::int64_t>(address_of(launch, kStep, tensor));
}

template <class Rule>
FUSEDSTEP_HD double& carried_of(const Launch& launch, std::int64_t tensor, int j) {
  return *pointer<double>(address_of(launch, kState + Rule::kStates + j, tensor));
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// min(1, max_grad_norm / (norm + 1e-6)), negative where the step ascends; a NaN stays one. An
// infinite max_grad_norm never clips.
FUSEDSTEP_HD double gradient_coefficient(const Launch& launch, const double* hyper) {
  double coefficient = 1.0;
  if (launch.grad_norm_sq != nullptr) {
    const double max_norm = hyper[kMaxGradNorm];
    coefficient = max_norm / (sqrt(*launch.grad_norm_sq) + 1e-6);
    coefficient = select(coefficient > 1.0 || max_norm == kInfinity, 1.0, coefficient);
  }
  return select(hyper[kMaximize] != 0.0, -coefficient, coefficient);
}

// Reads the tensor's row, count, carried scalars and sums; writes nothing. What lies in tables is
// loaded before the first branch waits for any of it; a pass without gradients leaves out what only
// their coefficient needs.
template <class Rule>
FUSEDSTEP_HD Prologue<Rule> prologue(const Launch& launch, std::int64_t tensor) {
  using T = typename Rule::opmath;
  Prologue<Rule> result;
  // A rule without hyper-parameters only sums the squares of gradients, before they are clipped
  // (N7): it has no scalars, and a square has no sign.
  if constexpr (Rule::kHypers == 0) return {{}, T(1), 0, {}, false};
  constexpr int kRow = kRuleHyper + Rule::kHypers, kFirst = Rule::kReadsGrad ? 0 : kRuleHyper;
  const std::int64_t row = launch.row[tensor] * launch.row_size;
  const std::int64_t& count = count_of(launch, tensor);
  for (int j = 0; j < Rule::kCarried; ++j) result.carried[j] = carried_of<Rule>(launch, tensor, j);
  double sums[kMaxSums] = {};
  if constexpr (kReadsSums<Rule>)
    for (int k = 0; k < Rule::kSums; ++k) sums[k] = sums_of(launch, launch.segment[tensor])[k];
  result.t = count + 1;
  double hyper[kRow];
  std::uint64_t source[kRow];
  for (int j = kFirst; j < kRow; ++j) source[j] = launch.source[row + j];
  for (int j = kFirst; j < kRow; ++j) hyper[j] = launch.hyper[row + j];
  for (int j = kFirst; j < kRow; ++j)
    if (source[j] != 0) hyper[j] = source_value(source[j]);
  result.faded = Rule::faded(result.carried);
  result.scalars = scalars_of<Rule>(hyper + kRuleHyper, result.t, result.carried, sums);
  result.coefficient = T(1);
  if constexpr (Rule::kReadsGrad) result.coefficient = T(gradient_coefficient(launch, hyper));
  return result;
}

// Whether the launch has work on a tensor whose gradient is at that address.
template <class Rule>
FUSEDSTEP_HD bool serves(std::uint64_t grad) {
  return Rule::kServesAll || grad != 0;
}

// After the last read of a launch: count and carried scalars of a tensor that took part.
template <class Rule>
FUSEDSTEP_HD bool advances(const Launch& launch, std::int64_t tensor) {
  return Rule::kMovesParam && (Rule::kCountsAll || launch.grad[tensor] != 0);
}

template <class Rule>
FUSEDSTEP_HD void advance(const Launch& launch, std::int64_t tensor, const Prologue<Rule>& now) {
  for (int j = 0; j < Rule::kCarried; ++j) carried_of<Rule>(launch, tensor, j) = now.carried[j];
  count_of(launch, tensor) = now.t;
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
