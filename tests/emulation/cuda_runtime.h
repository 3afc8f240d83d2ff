// The part of CUDA that kernels/ uses, on the host: a CUDA thread is a thread, several blocks of a
// launch run at the same time, and a launch returns when its last thread has.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/float_environment.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned width) : x(width) {}
};

namespace emulation {

constexpr unsigned kProcessors = 3;  // blocks that run at the same time
constexpr unsigned kWarp = 32;

// What the threads of one warp have in common.
class Warp {
 public:
  // The value of the lane `distance` above; the last lanes get their own.
  double shift_down(unsigned lane, double value, int distance) {
    values_[lane] = value;
    barrier_.arrive_and_wait();
    const double found = values_[lane + distance < kWarp ? lane + distance : lane];
    barrier_.arrive_and_wait();
    return found;
  }

 private:
  std::barrier<> barrier_{kWarp};
  double values_[kWarp];
};

// What the threads of one block have in common.
class Block {
 public:
  explicit Block(unsigned threads) : barrier(threads), warps(threads / kWarp) {}

  std::barrier<> barrier;
  std::vector<Warp> warps;

  // The block's own copy of the variable that `key` stands for.
  void* storage(const void* key, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::max_align_t>& memory = variables_[key];
    if (memory.empty()) memory.resize(bytes / sizeof(std::max_align_t) + 1);
    return memory.data();
  }

 private:
  std::mutex mutex_;
  std::map<const void*, std::vector<std::max_align_t>> variables_;
};

inline thread_local Block* block = nullptr;

inline unsigned add_in_order(unsigned* count, unsigned more) {
  return std::atomic_ref<unsigned>(*count).fetch_add(more);
}

template <class S, int kCount>
S* shared_memory() {
  static const char key = 0;
  return static_cast<S*>(block->storage(&key, sizeof(S) * kCount));
}

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

}  // namespace emulation

inline thread_local emulation::Index threadIdx, blockIdx, gridDim;

inline void __syncthreads() { emulation::block->barrier.arrive_and_wait(); }
// Called by all threads of a warp.
inline double __shfl_down_sync(unsigned, double value, int distance) {
  return emulation::block->warps[threadIdx.x / emulation::kWarp].shift_down(
      threadIdx.x % emulation::kWarp, value, distance);
}
inline void* __cvta_global_to_generic(std::size_t address) {
  return reinterpret_cast<void*>(address);
}

enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorInsufficientDriver,
  cudaErrorSystemDriverMismatch,
  cudaErrorCompatNotSupportedOnDevice,
  cudaErrorInvalidDeviceFunction,
  cudaErrorInvalidKernelImage,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidPtx,
  cudaErrorUnsupportedPtxVersion,
  cudaErrorJitCompilerNotFound,
  cudaErrorJitCompilationDisabled,
};
using cudaStream_t = struct Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulation {
inline cudaError_t status = cudaSuccess;  // what calls end with
}

inline const char* cudaGetErrorString(cudaError_t) { return "as the test wants it"; }
struct cudaFuncAttributes {};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return emulation::status;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (emulation::status != cudaSuccess) return emulation::status;
  const unsigned grid = config->gridDim.x, threads = config->blockDim.x;
  std::vector<std::unique_ptr<emulation::Block>> blocks;
  for (unsigned b = 0; b < grid; ++b) blocks.push_back(std::make_unique<emulation::Block>(threads));
  std::vector<std::thread> running;
  for (unsigned first = 0; first < std::min(grid, emulation::kProcessors); ++first)
    for (unsigned t = 0; t < threads; ++t)
      running.emplace_back([=, &blocks, &arguments...] {
        // A new thread inherits its creator's flush to zero; a GPU would not.
        const fusedstep::FloatEnvironment environment;
        gridDim = {grid};
        threadIdx = {t};
        for (unsigned b = first; b < grid; b += emulation::kProcessors) {
          emulation::block = blocks[b].get();
          blockIdx = {b};
          kernel(arguments...);
          emulation::block->barrier.arrive_and_drop();
        }
      });
  for (std::thread& thread : running) thread.join();
  return cudaSuccess;
}
