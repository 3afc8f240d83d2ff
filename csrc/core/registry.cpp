#include "core/registry.h"

namespace fusedstep {

template <class Kernel>
static Kernel* first = nullptr;

template <class Kernel>
void register_kernel(Kernel* kernel) {
  // If two files register one rule, its kernels come twice, and the list must not become a ring.
  for (const Kernel* known = first<Kernel>; known != nullptr; known = known->next)
    if (known == kernel) return;
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
