// The compiled CUDA kernels: a list that <algo>.cu files join when the module is loaded.
#pragma once

#include "core/tensor_lists.h"

namespace fusedstep {

struct CudaKernel {
  const char* rule;
  unsigned variant;
  bool float64;
  int hypers, states, carried;
  // Enqueues one launch and returns at once: nullptr, or what went wrong.
  const char* (*apply)(const Launch&, int device, void* stream);
  CudaKernel* next;
};

void register_cuda_kernel(CudaKernel* kernel);
const CudaKernel* first_cuda_kernel();

}  // namespace fusedstep
