#include "rules/lamb.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::LAMB, fusedstep::CpuEngine> registered;
