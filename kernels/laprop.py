"""LaProp: ``csrc/rules/laprop.h`` in Triton."""

import triton
import triton.language as tl

from .numerics import div, ema, float64, max, power, select, sqrt


@triton.jit
def scalars(hyper, t, carried, opmath: tl.constexpr):
    lr, beta1, beta2, eps, weight_decay, centered_start, released = hyper
    # L1 = beta1 L1 + (1 - beta1) lr,  L2 = beta2 L2 + (1 - beta2)
    lr_ema = ema(carried[0], lr, beta1, 1.0 - beta1)
    one_ema = ema(carried[1], float64(1.0), beta2, 1.0 - beta2)
    warm = select((lr != 0.0) & (lr_ema != 0.0), lr / lr_ema, float64(0.0))
    correction2 = select(released != 0.0, one_ema, 1.0 - power(beta2, t))
    s = (
        select(lr != 0.0, 1.0 - weight_decay, float64(1.0)).to(opmath),
        beta1.to(opmath),
        beta2.to(opmath),
        (1.0 - beta2).to(opmath),
        ((1.0 - beta1) * lr * sqrt(correction2)).to(opmath),
        select(released != 0.0, warm, 1.0 / (1.0 - power(beta1, t))).to(opmath),
        select(released != 0.0, float64(0.0), eps * correction2).to(opmath),
        select(released != 0.0, eps * sqrt(correction2), float64(0.0)).to(opmath),
        select(t.to(tl.float64) > centered_start, float64(1.0), float64(0.0)).to(opmath),
    )
    return s, (lr_ema, one_ema)


@triton.jit
def update(s, g, p, state, variant: tl.constexpr):
    decay, beta1, beta2, one_minus_beta2, c_in, c_out, eps_in, eps_out, centering = s
    amsgrad: tl.constexpr = variant & 1
    centered: tl.constexpr = variant & 2
    if centered:
        c, variance = state[1], state[2]
        # e = g - c,  c += (1 - beta2) e,  var = beta2 (var + (1 - beta2) e^2)
        e = g - c
        c = c + one_minus_beta2 * e
        variance = beta2 * (variance + one_minus_beta2 * (e * e))
        moments = (c, variance)
        # n = var once centring has begun, else v = var + c^2
        n = select(centering != 0.0, variance, variance + c * c)
    else:
        # v = beta2 v + (1 - beta2) g^2
        n = ema(state[1], g * g, beta2, one_minus_beta2)
        moments = (n,)
    if amsgrad:
        # nmax = max(nmax, n), with centered only once centring has begun
        largest = state[3] if centered else state[2]
        larger = max(largest, n)
        if centered:
            largest = select(centering != 0.0, larger, largest)
            n = select(centering != 0.0, larger, n)
        else:
            largest = larger
            n = larger
        moments += (largest,)
    # m = beta1 m + (1 - beta1) lr g / sqrt(n/bc2 + eps)   (released: eps outside of the root)
    m = beta1 * state[0] + div(c_in * g, sqrt(n + eps_in) + eps_out)
    # p -= m / bc1,  p *= 1 - wd unless lr is 0
    return (p - c_out * m) * decay, (m,) + moments  # noqa: RUF005
