"""MADGRAD: ``csrc/rules/madgrad.h`` in Triton."""

import triton
import triton.language as tl

from .numerics import cbrt, div, ema, float64, neg, select, sqrt


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr):
    lr, momentum, weight_decay, eps, decoupled, released = hyper
    # a first step with lr 0: c = 0
    momentum = select((t == 1) & (lr == 0.0), float64(1.0), momentum)
    # released: lr + eps, unless lr is 0
    lr = select((released != 0.0) & (lr != 0.0), lr + eps, lr)
    s = (
        select(decoupled != 0.0, lr * weight_decay, float64(0.0)).to(opmath),
        select(decoupled != 0.0, float64(0.0), weight_decay).to(opmath),
        momentum.to(opmath),
        (1.0 - momentum).to(opmath),
        (lr * sqrt(t.to(tl.float64))).to(opmath),
        eps.to(opmath),
    )
    return s, carried


@triton.jit
def dual(x0, sum, nu, eps):
    """``x0 - sum / (cbrt(nu) + eps)``"""
    root = cbrt(nu) + eps
    return select(root == 0.0, x0, x0 - div(sum, root))


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    decoupled_decay, coupled_decay, momentum, one_minus_momentum, lam, eps = s
    without_momentum: tl.constexpr = variant & 1
    nu, sum = state[0], state[1]
    before = p
    # coupled: g += wd p
    g = select(coupled_decay != 0.0, g + coupled_decay * p, g)
    # momentum 0: x0 = p + s / (cbrt(nu) + eps)
    x0 = dual(p, neg(sum), nu, eps) if without_momentum else state[2]
    # nu += lam g^2,  s += lam g
    nu = nu + lam * (g * g)
    sum = sum + lam * g
    # z = x0 - s / (cbrt(nu) + eps)
    z = dual(x0, sum, nu, eps)
    # p = (1 - c) p + c z, p where c is 0
    if without_momentum:
        p = select(g == 0.0, p, z)
        new_state = (nu, sum)
    else:
        p = select(one_minus_momentum == 0.0, p, ema(p, z, momentum, one_minus_momentum))
        new_state = (nu, sum, x0)
    # decoupled: p -= lr wd p, of p before the step
    return select(decoupled_decay != 0.0, p - decoupled_decay * before, p), new_state
