"""MADGRAD: ``csrc/rules/madgrad.h`` in numpy."""

from types import SimpleNamespace

import numpy as np

from .numerics import cbrt, div, ema, select, sqrt

HYPERS, STATES = 6, (3, 2)  # by variant
COUNTS_ALL = True
READ_ONLY = (1, 0)  # x0


def scalars(hyper, t, carried, opmath):
    lr, momentum, weight_decay, eps, decoupled, released = hyper
    # a first step with lr 0: c = 0
    momentum = select((t == 1) & (lr == 0.0), 1.0, momentum)
    # released: lr + eps, unless lr is 0
    lr = select((released != 0.0) & (lr != 0.0), lr + eps, lr)
    return SimpleNamespace(
        decoupled_decay=opmath(select(decoupled != 0.0, lr * weight_decay, 0.0)),
        coupled_decay=opmath(select(decoupled != 0.0, 0.0, weight_decay)),
        momentum=opmath(momentum),
        one_minus_momentum=opmath(1.0 - momentum),
        lam=opmath(lr * sqrt(np.float64(t))),
        eps=opmath(eps),
    )


def dual(x0, sum, nu, eps):
    """``x0 - sum / (cbrt(nu) + eps)``"""
    root = cbrt(nu) + eps
    return select(root == 0, x0, x0 - div(sum, root))


def update(s, g, p, state, variant):
    momentum = not variant & 1
    nu, sum = state[:2]
    before = p
    # coupled: g += wd p
    g = select(s.coupled_decay != 0, g + s.coupled_decay * p, g)
    # momentum 0: x0 = p + s / (cbrt(nu) + eps)
    x0 = state[2] if momentum else dual(p, -sum, nu, s.eps)
    # nu += lam g^2,  s += lam g
    nu = nu + s.lam * (g * g)
    sum = sum + s.lam * g
    state[:2] = nu, sum
    # z = x0 - s / (cbrt(nu) + eps)
    z = dual(x0, sum, nu, s.eps)
    # p = (1 - c) p + c z, p where c is 0
    if momentum:
        p = select(s.one_minus_momentum == 0, p, ema(p, z, s.momentum, s.one_minus_momentum))
    else:
        p = select(g == 0, p, z)
    # decoupled: p -= lr wd p, of p before the step
    return select(s.decoupled_decay != 0, p - s.decoupled_decay * before, p)
