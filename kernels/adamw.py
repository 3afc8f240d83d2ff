"""Adam, AdamW: ``csrc/rules/adamw.h`` in Triton."""

import triton
import triton.language as tl

from .numerics import div, ema, float64, max, power, select, sqrt


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyper
    bias_correction1 = 1.0 - power(beta1, t)
    bias_correction2 = 1.0 - power(beta2, t)
    s = (
        select(decoupled != 0.0, 1.0 - lr * weight_decay, float64(1.0)).to(opmath),
        select(decoupled != 0.0, float64(0.0), weight_decay).to(opmath),
        beta1.to(opmath),
        (1.0 - beta1).to(opmath),
        beta2.to(opmath),
        (1.0 - beta2).to(opmath),
        (lr * sqrt(bias_correction2) / bias_correction1).to(opmath),
        (eps * sqrt(bias_correction2)).to(opmath),
    )
    return s, carried


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    decay, coupled_decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps = s
    amsgrad: tl.constexpr = variant & 1
    m, v = state[0], state[1]
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * decay
    g = select(coupled_decay != 0.0, g + coupled_decay * p, g)
    # m = beta1 m + (1 - beta1) g
    m = ema(m, g, beta1, one_minus_beta1)
    # v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, beta2, one_minus_beta2)
    new_state = (m, v)
    # vmax = max(vmax, v)
    if amsgrad:
        v = max(state[2], v)
        new_state += (v,)
    # p -= lr sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2))
    p = p - div(step_size * m, sqrt(v) + eps)
    return p, new_state
