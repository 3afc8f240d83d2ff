"""The weighted moments that MAdam and LaMAdam share: ``csrc/core/maxva.h`` in numpy."""

from types import SimpleNamespace

import numpy as np

from .numerics import clip, div, select

FADED = {np.float32: 2.0**-25, np.float64: 2.0**-54}  # 1 - q is 1 below


def scalars(lo, hi, init, delta, t, carried, opmath):
    # beta_1 = beta2_init; by default hi, or 0.9 where hi >= 1
    init = select(init < 0.0, select(hi < 1.0, hi, 0.9), init)
    lo = select(t == 1, init, lo)
    hi = select(t == 1, init, hi)
    # bound *= hi as rounded, with an allowance for the rounding of beta q
    carried[0] = carried[0] * (float(opmath(hi)) * (1.0 + 2.0**-22))
    return SimpleNamespace(lo=opmath(lo), hi=opmath(hi), delta=opmath(delta))


def update(moments, g, u, s, q):
    """Move u, s and q one step on; return them and w."""
    one = g.dtype.type(1)
    # e = g - u,  d = e^2
    e = g - u
    d = e * e
    # beta = clip((d + s) / ((2 - q) d + q s + delta), lo, hi)
    ratio = div(d + s, (2 * one - q) * d + q * s + moments.delta)
    beta = clip(ratio, moments.lo, moments.hi)
    # q = beta q,  w = 1 - q
    q = beta * q
    q = select(q < FADED[g.dtype.type], 0 * one, q)
    w = one - q
    # gamma = (1 - beta) / w
    gamma = div(one - beta, w)
    # u += gamma e
    u = u + gamma * e
    # s = (1 - gamma)(s + gamma d)
    s = (one - gamma) * (s + gamma * d)
    return u, s, q, w
