"""The weighted moments that MAdam and LaMAdam share: ``csrc/core/maxva.h`` in Triton."""

import triton
import triton.language as tl

from .numerics import clip, div, float64, select

FADED = tl.constexpr(2.0**-25)  # 1 - q is 1 below
FADED64 = tl.constexpr(2.0**-54)
ALLOWANCE = tl.constexpr(1.0 + 2.0**-22)


@triton.jit
def faded(carried, opmath: tl.constexpr):
    return carried[0] < (FADED64 if opmath == tl.float64 else FADED)


@triton.jit
def scalars(lo, hi, init, delta, t, bound, opmath: tl.constexpr):
    # beta_1 = beta2_init; by default hi, or 0.9 where hi >= 1
    init = select(init < 0.0, select(hi < 1.0, hi, float64(0.9)), init)
    lo = select(t == 1, init, lo)
    hi = select(t == 1, init, hi)
    gone = faded((bound,), opmath)
    # bound *= hi as rounded, with an allowance for the rounding of beta q
    bound = bound * (hi.to(opmath).to(tl.float64) * ALLOWANCE)
    return (lo.to(opmath), hi.to(opmath), delta.to(opmath), gone), bound


@triton.jit
def update(moments, g, u, s, q):
    """Move u, s and q one step on; return them and w."""
    lo, hi, delta, gone = moments
    # e = g - u,  d = e^2
    e = g - u
    d = e * e
    # beta = clip((d + s) / ((2 - q) d + q s + delta), lo, hi)
    ratio = div(d + s, (2.0 - q) * d + q * s + delta)
    beta = clip(ratio, lo, hi)
    # q = beta q,  w = 1 - q,  gamma = (1 - beta) / w
    gamma = 1.0 - beta
    if not gone:  # else w is one: dividing by it changes no bit
        q = beta * q
        q = select(q < (FADED64 if q.dtype == tl.float64 else FADED), 0.0, q)
        gamma = div(gamma, 1.0 - q)
    # u += gamma e
    u = u + gamma * e
    # s = (1 - gamma)(s + gamma d)
    s = (1.0 - gamma) * (s + gamma * d)
    return u, s, q, 1.0 - q
