"""LaMAdam: ``csrc/rules/lamadam.h`` in numpy."""

from types import SimpleNamespace

from . import maxva
from .numerics import div, ema, max, power, select, sqrt

HYPERS, STATES, CARRIED, FADING = 10, (4, 5), 2, 3  # STATES by variant


def scalars(hyper, t, carried, opmath):
    lr, beta1, lo, hi, init, eps, weight_decay, decoupled, delta, released = hyper
    # L = beta1 L + (1 - beta1) lr
    carried[1] = ema(carried[1], lr, beta1, 1.0 - beta1)
    warm = select((lr != 0.0) & (carried[1] != 0.0), lr / carried[1], 0.0)
    return SimpleNamespace(
        decay=opmath(select(decoupled != 0.0, 1.0 - lr * weight_decay, 1.0)),
        coupled_decay=opmath(select(decoupled != 0.0, 0.0, weight_decay)),
        beta1=opmath(beta1),
        c_in=opmath(select(released != 0.0, (1.0 - beta1) * lr, 1.0 - beta1)),
        c_out=opmath(select(released != 0.0, warm, lr / (1.0 - power(beta1, t)))),
        eps=opmath(eps),
        moments=maxva.scalars(lo, hi, init, delta, t, carried, opmath),
    )


def update(s, g, p, state, variant):
    amsgrad = variant & 1
    m, u = state[:2]
    # decoupled: p *= 1 - lr wd;  coupled: g += wd p
    p = p * s.decay
    g = select(s.coupled_decay != 0, g + s.coupled_decay * p, g)
    # u, s by maximal variation;  v = s + u^2
    u, state[2], state[3], _ = maxva.update(s.moments, g, u, state[2], state[3])
    v = state[2] + u * u
    # vmax = max(vmax, v)
    if amsgrad:
        v = state[4] = max(state[4], v)
    # m = beta1 m + c_in g / (sqrt(v) + eps)
    m = s.beta1 * m + s.c_in * div(g, sqrt(v) + s.eps)
    state[:2] = m, u
    # p -= c_out m
    return p - s.c_out * m
