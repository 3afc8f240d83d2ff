#include "rules/grad_norm.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::GradNorm, fusedstep::CudaEngine> registered;
