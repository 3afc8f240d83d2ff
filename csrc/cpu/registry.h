// The compiled CPU kernels: a list that <algo>.cpp files join when the module is loaded. Plain
// data, because every level's copy of this code runs before it is known whether the processor has
// it.
#pragma once

#include "core/tensor_lists.h"

namespace fusedstep {

struct CpuKernel {
  const char* level;  // instruction set, "generic" or "x86_64_v3"
  const char* rule;
  unsigned variant;
  bool float64;
  int hypers, states, carried;
  void (*apply)(const Launch&, int threads);
  CpuKernel* next;
};

void register_cpu_kernel(CpuKernel* kernel);
const CpuKernel* first_cpu_kernel();

}  // namespace fusedstep
