// Sums of squares (N7) by blocks of threads: of a chunk, and of a segment by the block that brings
// its last chunk.
#pragma once

#include "core/reduce.h"
#include "launch.cuh"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr int kThreadLanes = kLanes / kThreads;

// The block's lanes folded by halving, in thread 0. A thread holds kThreadLanes of them; lanes
// that differ in their lowest bits only, kNeighbours of them, stand side by side in one thread.
template <int kNeighbours>
__device__ double fold_block(double* lanes) {
  double* shared = shared_memory<double, kThreads * kNeighbours>();
  const int thread = int(threadIdx.x);
  fold(lanes, kThreadLanes, kNeighbours);
#pragma unroll
  for (int half = kThreads / 2; half >= 1; half /= 2) {
    __syncthreads();
    if (thread >= half && thread < 2 * half)
      for (int i = 0; i < kNeighbours; ++i) shared[thread * kNeighbours + i] = lanes[i];
    __syncthreads();
    if (thread < half)
      for (int i = 0; i < kNeighbours; ++i)
        lanes[i] = lanes[i] + shared[(thread + half) * kNeighbours + i];
  }
  fold(lanes, kNeighbours, 1);
  return lanes[0];
}

// The sums of a segment whose chunks have all arrived.
template <class Rule>
__device__ void sum_segment(const Launch& launch, std::int64_t segment) {
  const std::int64_t begin = launch.segment_begin[segment];
  const std::int64_t end = launch.segment_begin[segment + 1];
  double sums[Rule::kSums];
  for (int k = 0; k < Rule::kSums; ++k) {
    // Other blocks wrote these in this launch: not from the first-level cache.
    const volatile double* partial = launch.partial + k * launch.slots;
    double lanes[kThreadLanes] = {};
    for (std::int64_t first = begin + threadIdx.x; first < end; first += kLanes)
#pragma unroll
      for (int i = 0; i < kThreadLanes; ++i)
        if (first + i * kThreads < end) lanes[i] = lanes[i] + partial[first + i * kThreads];
    sums[k] = fold_block<1>(lanes);
  }
  if (threadIdx.x != 0 || (Rule::kCounted && sums[Rule::kSums - 1] == 0.0)) return;
  for (int k = 0; k < Rule::kSums; ++k) result_of(launch, segment)[k] = sums[k];
}

// Says that a chunk's sums are stored (by thread 0). All threads of the block call it.
template <class Rule>
__device__ void arrive(const Launch& launch, std::int64_t tensor) {
  bool* complete = shared_memory<bool, 2>();
  const std::int64_t segment = launch.segment[tensor];
  if (threadIdx.x == 0) {
    __threadfence();
    *complete = atomicAdd(&launch.arrived[segment], 1u) + 1 == launch.segment_chunks[segment];
    __threadfence();
  }
  __syncthreads();
  if (!*complete) return;
  sum_segment<Rule>(launch, segment);
  if (threadIdx.x == 0) launch.arrived[segment] = 0;
}

// The chunk's sum of sort k, stored by thread 0.
__device__ __forceinline__ void store_partial(const Launch& launch, const Chunk& chunk, int k,
                                              double sum) {
  if (threadIdx.x == 0)
    launch.partial[k * launch.slots + launch.slot[chunk.tensor] + chunk.index] = sum;
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
