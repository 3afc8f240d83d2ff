#include "rules/madgrad.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::MADGRAD, fusedstep::CpuEngine> registered;
