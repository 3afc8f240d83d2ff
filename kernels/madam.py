"""MAdam: ``csrc/rules/madam.h`` in Triton."""

import triton
import triton.language as tl

from . import maxva
from .numerics import div, ema, float64, max, power, select, sqrt

faded = maxva.faded


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr):
    lr, beta1, lo, hi, init, eps, weight_decay, decoupled, delta = hyper
    moments, bound = maxva.scalars(lo, hi, init, delta, t, carried[0], opmath)
    s = (
        select(decoupled != 0.0, 1.0 - lr * weight_decay, float64(1.0)).to(opmath),
        select(decoupled != 0.0, float64(0.0), weight_decay).to(opmath),
        beta1.to(opmath),
        (1.0 - beta1).to(opmath),
        (lr / (1.0 - power(beta1, t))).to(opmath),
        eps.to(opmath),
        moments,
    )
    return s, (bound,)


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    decay, coupled_decay, beta1, one_minus_beta1, step_size, eps, moments = s
    amsgrad: tl.constexpr = variant & 1
    released: tl.constexpr = variant & 2
    m, u = state[0], state[1]
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * decay
    g = select(coupled_decay != 0.0, g + coupled_decay * p, g)
    # u, s, w by maximal variation;  v = s + u^2
    u, variance, q, w = maxva.update(moments, g, u, state[2], state[3])
    v = variance + u * u
    # vmax = max(vmax, v)
    if amsgrad:
        v = max(state[4], v)
    # m = beta1 m + (1 - beta1) g
    m = ema(m, g, beta1, one_minus_beta1)
    plain = released if released else moments[3]  # once w is one, the forms are one
    if plain:
        # p -= lr/bc1 m / (sqrt(v) + eps)
        p = p - div(step_size * m, sqrt(v) + eps)
    else:
        # p -= lr sqrt(w)/bc1 m / (sqrt(w v) + eps)
        p = p - div(step_size * sqrt(w) * m, sqrt(w * v) + eps)
    new_state = (m, u, variance, q)
    if amsgrad:
        new_state += (v,)
    return p, new_state
