"""MAdam: ``csrc/rules/madam.h`` in numpy."""

from types import SimpleNamespace

from . import maxva
from .numerics import div, ema, max, power, select, sqrt

HYPERS, STATES, CARRIED, FADING = 9, (4, 5, 4, 5), 1, 3  # STATES by variant


def scalars(hyper, t, carried, opmath):
    lr, beta1, lo, hi, init, eps, weight_decay, decoupled, delta = hyper
    return SimpleNamespace(
        decay=opmath(select(decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
        coupled_decay=opmath(select(decoupled != 0.0, 0.0, weight_decay)),
        beta1=opmath(beta1),
        one_minus_beta1=opmath(1.0 - beta1),
        step_size=opmath(lr / (1.0 - power(beta1, t))),
        eps=opmath(eps),
        moments=maxva.scalars(lo, hi, init, delta, t, carried, opmath),
    )


def update(s, g, p, state, variant):
    amsgrad, released = variant & 1, variant & 2
    m, u = state[:2]
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay
    g = select(s.coupled_decay != 0, g + s.coupled_decay * p, g)
    # u, s, w by maximal variation;  v = s + u^2
    u, state[2], state[3], w = maxva.update(s.moments, g, u, state[2], state[3])
    v = state[2] + u * u
    # vmax = max(vmax, v)
    if amsgrad:
        v = state[4] = max(state[4], v)
    # m = beta1 m + (1 - beta1) g
    m = ema(m, g, s.beta1, s.one_minus_beta1)
    state[:2] = m, u
    if released:
        # p -= lr/bc1 m / (sqrt(v) + eps)
        return p - div(s.step_size * m, sqrt(v) + s.eps)
    # p -= lr sqrt(w)/bc1 m / (sqrt(w v) + eps)
    return p - div(s.step_size * sqrt(w) * m, sqrt(w * v) + s.eps)
