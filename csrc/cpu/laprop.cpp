#include "rules/laprop.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::LaProp, fusedstep::CpuEngine> registered;
