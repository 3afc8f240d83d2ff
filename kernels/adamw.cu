#include "rules/adamw.h"

#include "multi_tensor_apply.cuh"

static const fusedstep::RegisterRule<fusedstep::AdamW, fusedstep::CudaEngine> registered;
