"""LaProp: ``csrc/rules/laprop.h`` in numpy."""

from types import SimpleNamespace

from .numerics import div, ema, max, power, select, sqrt

HYPERS, STATES, CARRIED = 7, (2, 3, 3, 4), 2  # STATES by variant


def scalars(hyper, t, carried, opmath):
    lr, beta1, beta2, eps, weight_decay, centered_start, released = hyper
    # L1 = beta1 L1 + (1 - beta1) lr,  L2 = beta2 L2 + (1 - beta2)
    carried[0] = ema(carried[0], lr, beta1, 1.0 - beta1)
    carried[1] = ema(carried[1], 1.0, beta2, 1.0 - beta2)
    warm = select((lr != 0.0) & (carried[0] != 0.0), lr / carried[0], 0.0)
    correction2 = select(released != 0.0, carried[1], 1.0 - power(beta2, t))
    return SimpleNamespace(
        decay=opmath(select(lr != 0.0, 1.0 - weight_decay, 1.0)),
        beta1=opmath(beta1),
        beta2=opmath(beta2),
        one_minus_beta2=opmath(1.0 - beta2),
        c_in=opmath((1.0 - beta1) * lr * sqrt(correction2)),
        c_out=opmath(select(released != 0.0, warm, 1.0 / (1.0 - power(beta1, t)))),
        eps_in=opmath(select(released != 0.0, 0.0, eps * correction2)),
        eps_out=opmath(select(released != 0.0, eps * sqrt(correction2), 0.0)),
        centering=opmath(select(float(t) > centered_start, 1.0, 0.0)),
    )


def update(s, g, p, state, variant):
    amsgrad, centered = variant & 1, variant & 2
    m = state[0]
    if centered:
        c, variance = state[1:3]
        # e = g - c,  c += (1 - beta2) e,  var = beta2 (var + (1 - beta2) e^2)
        e = g - c
        c = c + s.one_minus_beta2 * e
        variance = s.beta2 * (variance + s.one_minus_beta2 * (e * e))
        state[1:3] = c, variance
        # n = var once centring has begun, else v = var + c^2
        n = select(s.centering != 0, variance, variance + c * c)
    else:
        # v = beta2 v + (1 - beta2) g^2
        n = state[1] = ema(state[1], g * g, s.beta2, s.one_minus_beta2)
    if amsgrad:
        # nmax = max(nmax, n), with centered only once centring has begun
        larger = max(state[-1], n)
        begun = not centered or s.centering != 0
        state[-1] = select(begun, larger, state[-1])
        n = select(begun, larger, n)
    # m = beta1 m + (1 - beta1) lr g / sqrt(n/bc2 + eps)   (released: eps outside of the root)
    m = s.beta1 * m + div(s.c_in * g, sqrt(n + s.eps_in) + s.eps_out)
    state[0] = m
    # p -= m / bc1,  p *= 1 - wd unless lr is 0
    return (p - s.c_out * m) * s.decay
