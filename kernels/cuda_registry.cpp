#include "cuda_registry.h"

namespace fusedstep {

static CudaKernel* first = nullptr;

void register_cuda_kernel(CudaKernel* kernel) {
  kernel->next = first;
  first = kernel;
}

const CudaKernel* first_cuda_kernel() { return first; }

}  // namespace fusedstep
