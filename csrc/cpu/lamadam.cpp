#include "rules/lamadam.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::LaMAdam, fusedstep::CpuEngine> registered;
