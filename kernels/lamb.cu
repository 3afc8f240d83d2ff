#include "rules/lamb.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::LAMB, fusedstep::CudaEngine> registered;
