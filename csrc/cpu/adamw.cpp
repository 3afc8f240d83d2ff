#include "rules/adamw.h"

#include "cpu/multi_tensor_apply.h"

static const fusedstep::RegisterRule<fusedstep::AdamW, fusedstep::CpuEngine> registered;
