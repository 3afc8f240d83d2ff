#include "rules/avagrad.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::AvaGrad, fusedstep::CudaEngine> registered;
