#include "rules/lamadam.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::LaMAdam, fusedstep::CudaEngine> registered;
