#include "rules/madgrad.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::MADGRAD, fusedstep::CudaEngine> registered;
