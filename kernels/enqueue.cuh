// What kernels need of the GPU: launching, storage of a block, counts in order, errors as text.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "core/launch.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr int kThreads = 256;  // per block

// Storage of the calling block. (Emulated blocks share a process, so theirs comes from the
// emulation.)
#ifdef __CUDACC__
template <class S, int kCount>
__device__ __forceinline__ S* shared_memory() {
  __shared__ S storage[kCount];
  return storage;
}
#else
using emulation::shared_memory;
#endif

// Adds to a count of blocks and returns what it was. What the thread, or its block before a
// barrier, wrote before is visible to a thread that adds later and then calls see_others.
__device__ __forceinline__ unsigned add_in_order(unsigned* count, unsigned more) {
#ifdef __CUDACC__
  unsigned before;
  asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(count)), "r"(more)
               : "memory");
  return before;
#else
  return emulation::add_in_order(count, more);
#endif
}

// Acquires what all earlier additions have released: this thread's addition has read them, through
// the additions between, and a fence after a read acquires (PTX's acquire pattern). Only the last
// block calls it, because it empties the multiprocessor's first-level cache.
__device__ __forceinline__ void see_others() {
#ifdef __CUDACC__
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// nullptr on success, else which call failed and why; valid until the thread's next failure.
inline const char* failure(const char* call, cudaError_t status) {
  static thread_local char text[256];
  if (status == cudaSuccess) return nullptr;
  std::snprintf(text, sizeof text, "%s: %s", call, cudaGetErrorString(status));
  return text;
}

// Whether a call failed because build, driver and device do not go together, and never will.
inline bool is_misfit(cudaError_t status) {
  switch (status) {
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return true;
    default:
      return false;
  }
}

// Blocks that share a chunk. Small pieces let all blocks work in a narrow stretch of every column,
// which is faster; chunks that are mostly empty are not worth more than one.
inline unsigned pieces(const Launch& launch) {
  return 2 * launch.elements > launch.chunks * kChunk ? 2 : 1;
}

// On the current device. The hardware hands out blocks as multiprocessors become free.
inline const char* enqueue(void (*kernel)(Launch), unsigned pieces, const Launch& launch,
                           void* stream) {
  cudaLaunchConfig_t config = {};
  // Without chunks one block still advances the counts of tensors without elements.
  config.gridDim = unsigned(std::max<std::int64_t>(launch.chunks * pieces, 1));
  config.blockDim = kThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  return failure("cudaLaunchKernelEx", cudaLaunchKernelEx(&config, kernel, launch));
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
