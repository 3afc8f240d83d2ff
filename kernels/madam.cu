#include "rules/madam.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::MAdam, fusedstep::CudaEngine> registered;
