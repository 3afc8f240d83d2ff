"""Adam, AdamW: ``csrc/rules/adamw.h`` in numpy."""

from types import SimpleNamespace

from .numerics import div, ema, max, power, select, sqrt

HYPERS, STATES = 6, (2, 3)  # by variant


def scalars(hyper, t, carried, opmath):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyper
    bias_correction1 = 1.0 - power(beta1, t)
    bias_correction2 = 1.0 - power(beta2, t)
    return SimpleNamespace(
        decay=opmath(select(decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
        coupled_decay=opmath(select(decoupled != 0.0, 0.0, weight_decay)),
        beta1=opmath(beta1),
        one_minus_beta1=opmath(1.0 - beta1),
        beta2=opmath(beta2),
        one_minus_beta2=opmath(1.0 - beta2),
        step_size=opmath(lr * sqrt(bias_correction2) / bias_correction1),
        eps=opmath(eps * sqrt(bias_correction2)),
    )


def update(s, g, p, state, variant):
    amsgrad = variant & 1
    m, v = state[:2]
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay
    g = select(s.coupled_decay != 0, g + s.coupled_decay * p, g)
    # m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1)
    # v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, s.beta2, s.one_minus_beta2)
    state[:2] = m, v
    # vmax = max(vmax, v)
    if amsgrad:
        v = state[2] = max(state[2], v)
    # p -= lr sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2))
    return p - div(s.step_size * m, sqrt(v) + s.eps)
