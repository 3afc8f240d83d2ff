#include "rules/delayed_adam.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::DelayedAdam, fusedstep::CudaEngine> registered;
