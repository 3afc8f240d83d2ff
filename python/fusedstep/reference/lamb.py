"""LAMB: ``csrc/rules/lamb.h`` in numpy."""

from types import SimpleNamespace

from .numerics import div, ema, power, round_bf16, select, sqrt

HYPERS, STATES = 6, 2
# by variant: the first pass, the second
SUMS, EMITS, READS_GRAD = 2, (True, False), (True, False)
MOVES_PARAM, READ_ONLY = (False, True), (0, 2)


def scalars(hyper, t, carried, opmath, sums, variant):
    lr, beta1, beta2, eps, weight_decay, rounds = hyper
    bias_correction1 = 1.0 - power(beta1, t)
    bias_correction2 = 1.0 - power(beta2, t)
    # ratio = ||p|| / ||u||
    scaled = (weight_decay != 0.0) & (sums[0] > 0.0) & (sums[1] > 0.0)
    ratio = select(scaled, sqrt(sums[0]) / sqrt(sums[1]), 1.0)
    return SimpleNamespace(
        beta1=opmath(beta1),
        one_minus_beta1=opmath(1.0 - beta1),
        beta2=opmath(beta2),
        one_minus_beta2=opmath(1.0 - beta2),
        u_scale=opmath(sqrt(bias_correction2) / bias_correction1),
        eps=opmath(eps * sqrt(bias_correction2)),
        wd=opmath(weight_decay),
        rounds=opmath(rounds),
        step_size=opmath(lr * ratio),
    )


def update(s, g, p, state, variant, out):
    second = variant & 1
    m, v = state
    if not second:
        # m = beta1 m + (1 - beta1) g, as it will be stored
        m = ema(m, g, s.beta1, s.one_minus_beta1)
        m = select(s.rounds != 0, round_bf16(m), m)
        # v = beta2 v + (1 - beta2) g^2
        v = ema(v, g * g, s.beta2, s.one_minus_beta2)
        state[:] = m, v
    # u = sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2)) + wd p
    u = div(s.u_scale * m, sqrt(v) + s.eps) + s.wd * p
    if second:
        # p -= lr ratio u
        return p - s.step_size * u
    out[:] = p, u
    return p
