"""AvaGrad: ``csrc/rules/avagrad.h`` in numpy."""

from types import SimpleNamespace

from .numerics import div, ema, power, select, sqrt

HYPERS, STATES = 7, 2
# by variant: paper, released, survey
SUMS, EMITS, COUNTED, KEEPS_ABSENT = 2, True, True, (True, False, True)
SERVES_ALL, READ_ONLY = (False, False, True), (0, 0, 2)
READS_GRAD = READS_PARAM = MOVES_PARAM = (True, True, False)


def scalars(hyper, t, carried, opmath, sums, variant):
    released = variant & 1
    lr, beta1, beta2, eps, weight_decay, decoupled, skip_zero = hyper
    # mean of eta^2; 1/eps^2 where no coordinate was counted
    mean = select(sums[1] > 0.0, sums[0] / sums[1], 1.0 / (eps * eps))
    # paper: no bias correction; released: the first step only accumulates
    bias_correction1 = 1.0 - power(beta1, t) if released else 1.0
    previous = 1.0 - power(beta2, t - 1) if released else 1.0
    current = 1.0 - power(beta2, t) if released else 1.0
    moves = not released or t > 1
    return SimpleNamespace(
        decay=opmath(select(moves and decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
        coupled_decay=opmath(select(decoupled != 0.0, 0.0, weight_decay)),
        beta1=opmath(beta1),
        one_minus_beta1=opmath(1.0 - beta1),
        beta2=opmath(beta2),
        one_minus_beta2=opmath(1.0 - beta2),
        step_size=opmath(lr * sqrt(previous) / bias_correction1 / sqrt(mean)),
        eps=opmath(eps * sqrt(previous)),
        moves=opmath(select(moves, 1.0, 0.0)),
        eta_scale=opmath(sqrt(current)),
        eta_eps=opmath(eps * sqrt(current)),
        zero_counts=opmath(1.0 - skip_zero),
    )


def emit(s, v):
    """eta of a second moment, and 1 where it is counted."""
    one = v.dtype.type(1)
    counted = select(v == 0, s.zero_counts, one)
    # eta = 1 / (sqrt(v)/sqrt(bc2) + eps)
    return [select(counted != 0, div(s.eta_scale, sqrt(v) + s.eta_eps), 0 * one), counted]


def update(s, g, p, state, variant, out):
    released, survey = variant & 1, variant & 2
    m, v = state
    if released or survey:
        out[:] = emit(s, v)
    if survey:
        return p
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay
    g = select(s.coupled_decay != 0, g + s.coupled_decay * p, g)
    # m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1)
    # p -= lr / sqrt(mean eta^2) m / (sqrt(v) + eps), v as the last step left it
    p = select(s.moves != 0, p - div(s.step_size * m, sqrt(v) + s.eps), p)
    # v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, s.beta2, s.one_minus_beta2)
    state[:] = m, v
    if not released:
        out[:] = emit(s, v)
    return p
