"""Delayed Adam: ``csrc/rules/delayed_adam.h`` in numpy."""

from types import SimpleNamespace

from .numerics import div, ema, power, select, sqrt

HYPERS, STATES = 5, 2


def scalars(hyper, t, carried, opmath):
    lr, beta1, beta2, eps, weight_decay = hyper
    bias_correction1 = 1.0 - power(beta1, t)
    bias_correction2 = 1.0 - power(beta2, t - 1)  # of v as the last step left it
    return SimpleNamespace(
        coupled_decay=opmath(weight_decay),
        beta1=opmath(beta1),
        one_minus_beta1=opmath(1.0 - beta1),
        beta2=opmath(beta2),
        one_minus_beta2=opmath(1.0 - beta2),
        step_size=opmath(lr * sqrt(bias_correction2) / bias_correction1),
        eps=opmath(eps * sqrt(bias_correction2)),
    )


def update(s, g, p, state, variant):
    m, v = state
    # g += wd p
    g = select(s.coupled_decay != 0, g + s.coupled_decay * p, g)
    # m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1)
    # p -= lr sqrt(bc2)/bc1 m / (sqrt(v) + eps sqrt(bc2))
    p = select(v != 0, p - div(s.step_size * m, sqrt(v) + s.eps), p)
    # v = beta2 v + (1 - beta2) g^2
    v = ema(v, g * g, s.beta2, s.one_minus_beta2)
    state[:] = m, v
    return p
