"""AvaGrad: ``csrc/rules/avagrad.h`` in Triton."""

import triton
import triton.language as tl

from .numerics import div, ema, float64, power, select, sqrt


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr, sums, variant: tl.constexpr):
    released: tl.constexpr = variant & 1
    lr, beta1, beta2, eps, weight_decay, decoupled, skip_zero = hyper
    # mean of eta^2; 1/eps^2 where no coordinate was counted
    mean = select(sums[1] > 0.0, sums[0] / sums[1], 1.0 / (eps * eps))
    # paper: no bias correction; released: the first step only accumulates
    if released:
        bias_correction1 = 1.0 - power(beta1, t)
        previous = 1.0 - power(beta2, t - 1)
        current = 1.0 - power(beta2, t)
        moves = t > 1
    else:
        bias_correction1 = float64(1.0)
        previous = float64(1.0)
        current = float64(1.0)
        moves = t > 0
    s = (
        select(moves & (decoupled != 0.0), 1.0 - lr * weight_decay, float64(1.0)).to(opmath),
        select(decoupled != 0.0, float64(0.0), weight_decay).to(opmath),
        beta1.to(opmath),
        (1.0 - beta1).to(opmath),
        beta2.to(opmath),
        (1.0 - beta2).to(opmath),
        (lr * sqrt(previous) / bias_correction1 / sqrt(mean)).to(opmath),
        (eps * sqrt(previous)).to(opmath),
        select(moves, float64(1.0), float64(0.0)).to(opmath),
        sqrt(current).to(opmath),
        (eps * sqrt(current)).to(opmath),
        (1.0 - skip_zero).to(opmath),
    )
    return s, carried


@triton.jit
def emit(v, eta_scale, eta_eps, zero_counts):
    """eta of a second moment, and 1 where it is counted."""
    counted = select(v == 0.0, zero_counts, 1.0)
    # eta = 1 / (sqrt(v)/sqrt(bc2) + eps)
    return select(counted != 0.0, div(eta_scale, sqrt(v) + eta_eps), 0.0), counted


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    (
        decay, coupled_decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps, moves,
        eta_scale, eta_eps, zero_counts,
    ) = s  # fmt: skip
    released: tl.constexpr = variant & 1
    survey: tl.constexpr = variant & 2
    m, v = state[0], state[1]
    if released or survey:
        out = emit(v, eta_scale, eta_eps, zero_counts)
    if not survey:
        # decoupled: p *= 1 - lr wd;  coupled: g += wd p
        p = p * decay
        g = select(coupled_decay != 0.0, g + coupled_decay * p, g)
        # m = beta1 m + (1 - beta1) g
        m = ema(m, g, beta1, one_minus_beta1)
        # p -= lr / sqrt(mean eta^2) m / (sqrt(v) + eps), v as the last step left it
        p = select(moves != 0.0, p - div(step_size * m, sqrt(v) + eps), p)
        # v = beta2 v + (1 - beta2) g^2
        v = ema(v, g * g, beta2, one_minus_beta2)
        if not released:
            out = emit(v, eta_scale, eta_eps, zero_counts)
    return p, (m, v), out
