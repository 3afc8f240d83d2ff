#include "rules/grad_norm.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::GradNorm, fusedstep::CpuEngine> registered;
