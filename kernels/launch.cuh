// How a kernel reaches the GPU: the device, the grid, the stream, and errors as text.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "core/tensor_lists.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr int kThreads = 128;  // per block

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

// nullptr on success, else which call failed and why; valid until the thread's next failure.
inline const char* failure(const char* call, cudaError_t status) {
  static thread_local char text[256];
  if (status == cudaSuccess) return nullptr;
  std::snprintf(text, sizeof text, "%s: %s", call, cudaGetErrorString(status));
  return text;
}

// Blocks of a kernel that one device runs at a time.
struct Residency {
  int device = -1;
  int blocks = 0;
};

template <class... Arguments>
const char* measure(void (*kernel)(Arguments...), int device, Residency& residency) {
  int processors = 0, blocks = 0;
  if (const char* error =
          failure("cudaDeviceGetAttribute",
                  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)))
    return error;
  if (const char* error =
          failure("cudaOccupancyMaxActiveBlocksPerMultiprocessor",
                  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0)))
    return error;
  residency = {device, std::max(1, processors * blocks)};
  return nullptr;
}

// On the current device: no more blocks than run at a time, since each walks over chunks.
inline const char* enqueue(void (*kernel)(Launch), Residency& residency, const Launch& launch,
                           int device, void* stream) {
  if (residency.device != device)
    if (const char* error = measure(kernel, device, residency)) return error;
  cudaLaunchConfig_t config = {};
  // Without chunks one block still advances the counts of tensors without elements.
  config.gridDim = unsigned(std::clamp<std::int64_t>(launch.chunks, 1, residency.blocks));
  config.blockDim = kThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  return failure("cudaLaunchKernelEx", cudaLaunchKernelEx(&config, kernel, launch));
}

// Launches on `device` and leaves the thread's current device as it was.
inline const char* enqueue_on(void (*kernel)(Launch), Residency& residency, const Launch& launch,
                              int device, void* stream) {
  int current = -1;
  if (const char* error = failure("cudaGetDevice", cudaGetDevice(&current))) return error;
  if (current == device) return enqueue(kernel, residency, launch, device, stream);
  if (const char* error = failure("cudaSetDevice", cudaSetDevice(device))) return error;
  const char* error = enqueue(kernel, residency, launch, device, stream);
  const cudaError_t restored = cudaSetDevice(current);
  return error != nullptr ? error : failure("cudaSetDevice", restored);
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
