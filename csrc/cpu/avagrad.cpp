#include "rules/avagrad.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::AvaGrad, fusedstep::CpuEngine> registered;
