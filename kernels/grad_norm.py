"""The squared norm of all gradients: ``csrc/rules/grad_norm.h`` in Triton."""

import triton
import triton.language as tl


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr, sums, variant: tl.constexpr):
    return (), ()


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    return p, state, (g,)
