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

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// min(1, max_grad_norm / (norm + 1e-6)), negative where the step ascends; a NaN stays one. An
// infinite max_grad_norm never clips.
FUSEDSTEP_HD double gradient_coefficient(const Launch& launch, std::int64_t row) {
  double coefficient = 1.0;
  if (launch.grad_norm_sq != nullptr) {
    const double max_norm = hyper_value(launch, row * launch.hypers + kMaxGradNorm);
    coefficient = max_norm / (sqrt(*launch.grad_norm_sq) + 1e-6);
    coefficient = select(coefficient > 1.0 || max_norm == kInfinity, 1.0, coefficient);
  }
  const bool maximize = hyper_value(launch, row * launch.hypers + kMaximize) != 0.0;
  return select(maximize, -coefficient, coefficient);
}

// Reads the tensor's row, count, carried scalars and sums; writes nothing.
template <class Rule>
FUSEDSTEP_HD Prologue<Rule> prologue(const Launch& launch, std::int64_t tensor) {
  using T = typename Rule::opmath;
  Prologue<Rule> result;
  // Who has no hyper-parameters has no scalars; all that it does is to sum squares (the norm), on
  // which neither clipping nor the gradient's sign has an effect.
  if constexpr (Rule::kHypers == 0) return {{}, T(1), 0, {}, false};
  const std::int64_t row = launch.row[tensor];
  double hyper[Rule::kHypers > 0 ? Rule::kHypers : 1];
  for (int j = 0; j < Rule::kHypers; ++j)
    hyper[j] = hyper_value(launch, row * launch.hypers + kRuleHyper + j);
  for (int j = 0; j < Rule::kCarried; ++j)
    result.carried[j] =
        *pointer<const double>(address_of(launch, kState + Rule::kStates + j, tensor));
  double sums[kMaxSums] = {};
  if constexpr (kReadsSums<Rule>)
    for (int k = 0; k < Rule::kSums; ++k) sums[k] = sums_of(launch, launch.segment[tensor])[k];
  result.faded = Rule::faded(result.carried);
  result.t = *pointer<const std::int64_t>(address_of(launch, kStep, tensor)) + 1;
  result.scalars = scalars_of<Rule>(hyper, result.t, result.carried, sums);
  result.coefficient = T(gradient_coefficient(launch, row));
  return result;
}

// Whether the launch has work on a tensor.
template <class Rule>
FUSEDSTEP_HD bool serves(const Launch& launch, std::int64_t tensor) {
  return Rule::kServesAll || launch.grad[tensor] != 0;
}

// After the last read of a launch: count and carried scalars of a tensor that took part.
template <class Rule>
FUSEDSTEP_HD bool advances(const Launch& launch, std::int64_t tensor) {
  return Rule::kMovesParam && (Rule::kCountsAll || launch.grad[tensor] != 0);
}

template <class Rule>
FUSEDSTEP_HD void advance(const Launch& launch, std::int64_t tensor, const Prologue<Rule>& now) {
  for (int j = 0; j < Rule::kCarried; ++j)
    *pointer<double>(address_of(launch, kState + Rule::kStates + j, tensor)) = now.carried[j];
  *pointer<std::int64_t>(address_of(launch, kStep, tensor)) = now.t;
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
