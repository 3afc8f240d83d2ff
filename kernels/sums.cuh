// Sums of squares (N7) by blocks of threads: of a chunk, and of a segment by the block that brings
// its last chunk.
#pragma once

#include "core/reduce.h"
#include "enqueue.cuh"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr int kThreadLanes = kLanes / kThreads;

// The block's lanes folded by halving, in every thread. A thread holds kThreadLanes of them; lanes
// that differ in their lowest bits only, kNeighbours of them, stand side by side in one thread.
// What stands first in all threads is folded by the first warp, what stands second by the second.
template <int kNeighbours>
__device__ double fold_block(double* lanes) {
  constexpr int kWarp = 32, kWarps = kThreads / kWarp;
  double* shared = shared_memory<double, kThreads * kNeighbours>();
  const int thread = int(threadIdx.x), neighbour = thread / kWarp, column = thread % kWarp;
  fold(lanes, kThreadLanes, kNeighbours);
  __syncthreads();  // a fold before this one has read its own
#pragma unroll
  for (int i = 0; i < kNeighbours; ++i) shared[i * kThreads + thread] = lanes[i];
  __syncthreads();
  if (neighbour < kNeighbours) {
    double* own = shared + neighbour * kThreads;
    double rows[kWarps];
#pragma unroll
    for (int i = 0; i < kWarps; ++i) rows[i] = own[i * kWarp + column];
    fold(rows, kWarps, 1);
#pragma unroll
    for (int half = kWarp / 2; half >= 1; half /= 2)
      rows[0] = rows[0] + __shfl_down_sync(~0u, rows[0], half);
    if (column == 0) own[0] = rows[0];
  }
  __syncthreads();
  double sums[kNeighbours];
#pragma unroll
  for (int i = 0; i < kNeighbours; ++i) sums[i] = shared[i * kThreads];
  fold(sums, kNeighbours, 1);
  return sums[0];
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
  if (threadIdx.x != 0 || (kKeepsSums<Rule> && sums[Rule::kSums - 1] == 0.0)) return;
  for (int k = 0; k < Rule::kSums; ++k) result_of(launch, segment)[k] = sums[k];
}

// Where a chunk's sums go. It is looked up before the work, which hides the wait.
struct Place {
  double* partial;  // of the first sum
  std::int64_t segment, chunks;
};

__device__ __forceinline__ Place place_of(const Launch& launch, const Chunk& chunk) {
  const std::int64_t segment = launch.segment[chunk.tensor];
  return {partial_of(launch, chunk), segment, launch.segment_chunks[segment]};
}

// Stores a chunk's k-th sum, which thread 0 has.
__device__ __forceinline__ void store_partial(const Launch& launch, const Place& place, int k,
                                              double sum) {
  if (threadIdx.x == 0) place.partial[k * launch.slots] = sum;
}

// Says that a chunk's sums are stored. All threads of the block call it.
template <class Rule>
__device__ void arrive(const Launch& launch, const Place& place) {
  bool* complete = shared_memory<bool, 2>();  // 2: not the storage of advance_all's bool
  if (threadIdx.x == 0) {
    *complete = add_in_order(&launch.arrived[place.segment], 1u) + 1 == place.chunks;
    if (*complete) see_others();
  }
  __syncthreads();
  if (!*complete) return;
  sum_segment<Rule>(launch, place.segment);
  if (threadIdx.x == 0) launch.arrived[place.segment] = 0;
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
