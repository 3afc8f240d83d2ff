#include "rules/adamomentum.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::AdaMomentum, fusedstep::CpuEngine> registered;
