#include "cpu/registry.h"

namespace fusedstep {

static CpuKernel* first = nullptr;

void register_cpu_kernel(CpuKernel* kernel) {
  kernel->next = first;
  first = kernel;
}

const CpuKernel* first_cpu_kernel() { return first; }

}  // namespace fusedstep
