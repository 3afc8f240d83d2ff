// The compiled kernels: two lists that <algo>.cpp and <algo>.cu files join when the module is
// loaded. Plain data, because every level's copy of this code runs before it is known whether the
// processor supports the level.
#pragma once

#include "core/rule.h"

namespace fusedstep {

struct CpuKernel : KernelFacts {
  const char* level;  // instruction set, "generic", "x86_64_v3" or "x86_64_v4"
  void (*apply)(const Launch&, int threads);
  CpuKernel* next;
};

struct CudaKernel : KernelFacts {
  // Enqueues one launch on the current device and returns at once: nullptr, or what went wrong.
  const char* (*apply)(const Launch&, void* stream);
  // nullptr, or why the current device cannot run the kernel.
  const char* (*why_not)();
  CudaKernel* next;
};

// Defined for these two in registry.cpp.
template <class Kernel>
void register_kernel(Kernel* kernel);
template <class Kernel>
const Kernel* first_kernel();

}  // namespace fusedstep
