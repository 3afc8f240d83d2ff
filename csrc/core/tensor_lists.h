// What one launch works on: plain data, the same on every device. plan.py fills it.
#pragma once

#include <cstdint>

#include "core/numerics.h"

namespace fusedstep {

// Elements of a tensor are handed out in chunks. The size is a constant of the numerics law (N7):
// sums are taken chunk by chunk.
constexpr std::int64_t kChunk = 16384;
constexpr int kMaxCarried = 4;

enum class DType : std::int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Elements [index * kChunk, min(numel, (index + 1) * kChunk)) of one tensor.
struct Chunk {
  std::int32_t tensor;
  std::int32_t index;
};

// Tables live where the parameters live. N tensors, R rows of hyper-parameters, H of them in a row.
struct Launch {
  std::int64_t tensors = 0;
  std::int64_t chunks = 0;
  std::int64_t elements = 0;
  const Chunk* chunk = nullptr;            // [chunks]
  const std::int64_t* numel = nullptr;     // [N]
  const std::int64_t* row = nullptr;       // [N], the tensor's row of hyper-parameters
  const std::uint64_t* address = nullptr;  // [columns][N]: param, master, step, states, carried
  const std::uint64_t* grad = nullptr;     // [N], 0 where a tensor has no gradient in this step
  const double* hyper = nullptr;           // [R][H]
  const std::uint64_t* source = nullptr;   // [R][H], 0 or a 0-d tensor's address (+1: float64)
  const float* grad_scale = nullptr;       // the gradients' loss scale, or null
  const float* found_inf = nullptr;        // non-zero: the step is skipped; or null
  std::uint32_t* ticket = nullptr;         // blocks that have finished; 0 between launches
  DType param_dtype = DType::f32;
  DType grad_dtype = DType::f32;
  DType exp_avg_dtype = DType::f32;  // the first state; the others are opmath
  std::int32_t master = 0;           // 1: read and write float32 masters, store rounded param
};

enum Column : int { kParam = 0, kMaster = 1, kStep = 2, kState = 3 };

inline namespace FUSEDSTEP_LEVEL {

FUSEDSTEP_HD std::uint64_t address_of(const Launch& launch, int column, std::int64_t tensor) {
  return launch.address[column * launch.tensors + tensor];
}

template <class T>
FUSEDSTEP_HD T* pointer(std::uint64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

FUSEDSTEP_HD bool skipped(const Launch& launch) {
  return launch.found_inf != nullptr && *launch.found_inf != 0.0f;
}

// Hyper-parameter j of a row: the value in the table, or what its 0-d tensor holds now.
FUSEDSTEP_HD double hyper_value(const Launch& launch, std::int64_t entry) {
  const std::uint64_t source = launch.source[entry];
  if (source == 0) return launch.hyper[entry];
  if (source & 1u) return *pointer<const double>(source - 1u);
  return double(*pointer<const float>(source));
}

// What a block knows of one tensor before it touches an element.
template <class Rule>
struct Prologue {
  typename Rule::Scalars scalars;
  typename Rule::opmath coefficient;  // what the gradient is multiplied by: maximize
  double carried[kMaxCarried];        // their values after this step
  bool faded;                         // the fading state is zero everywhere
};

// Reads the tensor's row, count and carried scalars; writes nothing.
template <class Rule>
FUSEDSTEP_HD Prologue<Rule> prologue(const Launch& launch, std::int64_t tensor) {
  using T = typename Rule::opmath;
  Prologue<Rule> result;
  double hyper[Rule::kHypers];
  const std::int64_t row = launch.row[tensor];
  for (int j = 0; j < Rule::kHypers; ++j) hyper[j] = hyper_value(launch, row * Rule::kHypers + j);
  for (int j = 0; j < Rule::kCarried; ++j)
    result.carried[j] =
        *pointer<const double>(address_of(launch, kState + Rule::kStates + j, tensor));
  result.faded = Rule::faded(result.carried);
  const std::int64_t t = *pointer<const std::int64_t>(address_of(launch, kStep, tensor)) + 1;
  result.scalars = Rule::scalars(hyper, t, result.carried);
  result.coefficient = T(select(hyper[0] != 0.0, -1.0, 1.0));
  return result;
}

// After the last read of a launch: count and carried scalars of a tensor that took part.
template <class Rule>
FUSEDSTEP_HD void advance(const Launch& launch, std::int64_t tensor, const Prologue<Rule>& now) {
  for (int j = 0; j < Rule::kCarried; ++j)
    *pointer<double>(address_of(launch, kState + Rule::kStates + j, tensor)) = now.carried[j];
  *pointer<std::int64_t>(address_of(launch, kStep, tensor)) += 1;
}

template <class Rule>
FUSEDSTEP_HD void advance(const Launch& launch, std::int64_t tensor) {
  if (launch.grad[tensor] != 0) advance(launch, tensor, prologue<Rule>(launch, tensor));
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
