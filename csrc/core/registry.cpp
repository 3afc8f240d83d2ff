#include "core/registry.h"

namespace fusedstep {

template <class Kernel>
static Kernel* first = nullptr;

template <class Kernel>
void register_kernel(Kernel* kernel) {
  kernel->next = first<Kernel>;
  first<Kernel> = kernel;
}

template <class Kernel>
const Kernel* first_kernel() {
  return first<Kernel>;
}

template void register_kernel(CpuKernel*);
template void register_kernel(CudaKernel*);
template const CpuKernel* first_kernel();
template const CudaKernel* first_kernel();

}  // namespace fusedstep
