#include "rules/madam.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::MAdam, fusedstep::CpuEngine> registered;
