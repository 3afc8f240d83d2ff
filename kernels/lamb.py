"""LAMB: ``csrc/rules/lamb.h`` in Triton."""

import triton
import triton.language as tl

from .numerics import div, ema, float64, power, round_bf16, select, sqrt


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr, sums, variant: tl.constexpr):
    lr, beta1, beta2, eps, weight_decay, rounds = hyper
    bias_correction1 = 1.0 - power(beta1, t)
    bias_correction2 = 1.0 - power(beta2, t)
    # ratio = ||p|| / ||u||
    scaled = (weight_decay != 0.0) & (sums[0] > 0.0) & (sums[1] > 0.0)
    ratio = select(scaled, sqrt(sums[0]) / sqrt(sums[1]), float64(1.0))
    s = (
        beta1.to(opmath),
        (1.0 - beta1).to(opmath),
        beta2.to(opmath),
        (1.0 - beta2).to(opmath),
        (sqrt(bias_correction2) / bias_correction1).to(opmath),
        (eps * sqrt(bias_correction2)).to(opmath),
        weight_decay.to(opmath),
        rounds.to(opmath),
        (lr * ratio).to(opmath),
    )
    return s, carried


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    beta1, one_minus_beta1, beta2, one_minus_beta2, u_scale, eps, wd, rounds, step_size = s
    second: tl.constexpr = variant & 1
    m, v = state[0], state[1]
    if not second:
        # m = beta1 m + (1 - beta1) g, as it will be stored
        m = ema(m, g, beta1, one_minus_beta1)
        m = select(rounds != 0.0, round_bf16(m), m)
        # v = beta2 v + (1 - beta2) g^2
        v = ema(v, g * g, beta2, one_minus_beta2)
    # u = sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2)) + wd p
    u = div(u_scale * m, sqrt(v) + eps) + wd * p
    out = (p, u)
    if second:
        # p -= lr ratio u
        p = p - step_size * u
    return p, (m, v), out
