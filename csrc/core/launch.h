// What one launch works on: plain data, the same on every device. launch.py fills it.
#pragma once

#include <cstdint>

#include "core/numerics.h"

namespace fusedstep {

// Elements of a tensor are handed out in chunks. The size is a constant of the numerics law (N7):
// sums are taken chunk by chunk.
constexpr std::int64_t kChunk = 16384;
constexpr int kMaxCarried = 4;
constexpr int kMaxSums = 2;

enum class DType : std::int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Elements [index * kChunk, min(numel, (index + 1) * kChunk)) of one tensor.
struct Chunk {
  std::int32_t tensor;
  std::int32_t index;
};

// Tables live where the parameters live. N tensors, R rows of hyper-parameters, each of 2
// (maximize, max_grad_norm) and the rule's.
struct Launch {
  std::int64_t tensors = 0;
  std::int64_t chunks = 0;
  std::int64_t elements = 0;
  std::int64_t row_size = 0;               // 2 and the rule's hyper-parameters
  const Chunk* chunk = nullptr;            // [chunks]
  const std::int64_t* numel = nullptr;     // [N]
  const std::int64_t* row = nullptr;       // [N], the tensor's row of hyper-parameters
  const std::uint64_t* address = nullptr;  // [columns][N]: param, master, step, states, carried
  const std::uint64_t* grad = nullptr;     // [N], 0 where a tensor has no gradient in this step
  const double* hyper = nullptr;           // [R][row_size]
  const std::uint64_t* source = nullptr;   // [R][row_size], 0 or a 0-d tensor's address (+1: f64)
  const float* grad_scale = nullptr;       // the gradients' loss scale, or null
  const float* found_inf = nullptr;        // non-zero: the step is skipped; or null
  const double* grad_norm_sq = nullptr;    // squared global norm to clip by, or null
  std::uint32_t* ticket = nullptr;         // blocks that have read their counts; 0 between launches

  // Sums of squares (N7), for rules that have them. Slots number the chunks of all parameters of
  // the optimizer in its order; a segment is a stretch of slots that is summed, S of them.
  std::int64_t slots = 0;
  double* partial = nullptr;                      // [kSums][slots], sums of chunks
  const std::int64_t* slot = nullptr;             // [N], that of the tensor's first chunk
  const std::int64_t* segment = nullptr;          // [N]
  const std::int64_t* segment_begin = nullptr;    // [S + 1] slots
  const std::int64_t* segment_chunks = nullptr;   // [S] that one step's launches bring
  const std::uint64_t* segment_sums = nullptr;    // [S] addresses of float64 [kSums] to read
  const std::uint64_t* segment_result = nullptr;  // [S] and to write: the same, or this process's
  std::uint32_t* arrived = nullptr;               // [S] chunks; 0 between steps

  DType param_dtype = DType::f32;
  DType grad_dtype = DType::f32;
  DType exp_avg_dtype = DType::f32;  // the first state; the others are opmath
  std::int32_t master = 0;           // 1: read and write float32 masters, store rounded param
};

enum AddressColumn : int { kParam = 0, kMaster = 1, kStep = 2, kState = 3 };
enum OwnHyper : int { kMaximize = 0, kMaxGradNorm = 1, kRuleHyper = 2 };

inline namespace FUSEDSTEP_LEVEL {

template <class T>
constexpr DType kOpmath = sizeof(T) == sizeof(double) ? DType::f64 : DType::f32;

// State 0 may be narrower than opmath where it is exp_avg.
template <class T>
FUSEDSTEP_HD DType state_dtype(const Launch& launch, int k) {
  return k == 0 ? launch.exp_avg_dtype : kOpmath<T>;
}

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

// What the 0-d tensor of a hyper-parameter holds now.
FUSEDSTEP_HD double source_value(std::uint64_t source) {
  if (source & 1u) return *pointer<const double>(source - 1u);
  return double(*pointer<const float>(source));
}

FUSEDSTEP_HD const double* sums_of(const Launch& launch, std::int64_t segment) {
  return pointer<const double>(launch.segment_sums[segment]);
}

FUSEDSTEP_HD double* result_of(const Launch& launch, std::int64_t segment) {
  return pointer<double>(launch.segment_result[segment]);
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
