#include "rules/laprop.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::LaProp, fusedstep::CudaEngine> registered;
