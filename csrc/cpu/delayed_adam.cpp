#include "rules/delayed_adam.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::DelayedAdam, fusedstep::CpuEngine> registered;
