#include "rules/adamomentum.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::AdaMomentum, fusedstep::CudaEngine> registered;
