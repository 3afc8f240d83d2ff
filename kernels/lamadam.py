"""LaMAdam: ``csrc/rules/lamadam.h`` in Triton."""

import triton
import triton.language as tl

from . import maxva
from .numerics import div, ema, float64, max, power, select, sqrt

faded = maxva.faded


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr):
    lr, beta1, lo, hi, init, eps, weight_decay, decoupled, delta, released = hyper
    # L = beta1 L + (1 - beta1) lr
    lr_ema = ema(carried[1], lr, beta1, 1.0 - beta1)
    warm = select((lr != 0.0) & (lr_ema != 0.0), lr / lr_ema, float64(0.0))
    moments, bound = maxva.scalars(lo, hi, init, delta, t, carried[0], opmath)
    s = (
        select(decoupled != 0.0, 1.0 - lr * weight_decay, float64(1.0)).to(opmath),
        select(decoupled != 0.0, float64(0.0), weight_decay).to(opmath),
        beta1.to(opmath),
        select(released != 0.0, (1.0 - beta1) * lr, 1.0 - beta1).to(opmath),
        select(released != 0.0, warm, lr / (1.0 - power(beta1, t))).to(opmath),
        eps.to(opmath),
        moments,
    )
    return s, (bound, lr_ema)


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    decay, coupled_decay, beta1, c_in, c_out, eps, moments = s
    amsgrad: tl.constexpr = variant & 1
    m, u = state[0], state[1]
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * decay
    g = select(coupled_decay != 0.0, g + coupled_decay * p, g)
    # u, s by maximal variation;  v = s + u^2
    u, variance, q, _ = maxva.update(moments, g, u, state[2], state[3])
    v = variance + u * u
    # vmax = max(vmax, v)
    if amsgrad:
        v = max(state[4], v)
    # m = beta1 m + c_in g / (sqrt(v) + eps)
    m = beta1 * m + c_in * div(g, sqrt(v) + eps)
    # p -= c_out m
    p = p - c_out * m
    new_state = (m, u, variance, q)
    if amsgrad:
        new_state += (v,)
    return p, new_state
