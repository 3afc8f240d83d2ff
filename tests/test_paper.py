"""MAdam, LaMAdam, AdamW and Adam against the papers and torch.optim.

The transcription of MaxVA keeps weighted sums, where the library keeps mean and variance.
"""

import math

import fusedstep
import pytest
import torch

from tests.paper import (
    ABSENT,
    FORMS,
    PIECES,
    SIZE,
    STEPS,
    assert_close,
    gradients,
    play,
    schedule,
    start,
)
from tests.training import name_of


def maxva(
    cls, lr, changing, form, amsgrad=False, weight_decay=0.0, decoupled_weight_decay=True,
    beta2_range=None, eps=None,
):  # fmt: skip
    """MaxVA, Algorithms 1 and 2, element by element."""
    layered = cls is fusedstep.LaMAdam
    lo, hi, least = (0.5, 0.98, 1e-15) if layered else (0.5, 0.999, 1e-8)
    eps = least if eps is None else eps
    lo, hi = beta2_range or (lo, hi)
    delta = 1e-16 if form == "released" else 0.0
    beta1 = 0.9
    trace = [start() for _ in range(STEPS)]
    for i in range(SIZE):
        p = float(start()[i])
        sum_u = sum_v = w = m = vmax = lr_sum = 0.0
        for t, gradient in enumerate(gradients(), 1):
            rate = schedule(t, lr) if changing else lr
            g = float(gradient[i])
            if decoupled_weight_decay:
                p -= rate * weight_decay * p
            else:
                g += weight_decay * p
            if t == 1:
                beta = hi
            else:
                u, v = sum_u / w, sum_v / w
                d = (g - u) ** 2
                beta = (d + v - u * u) / (w * (d - v + u * u) + d + v - u * u + delta)
                beta = min(max(beta, lo), hi)
            sum_u = beta * sum_u + (1 - beta) * g
            sum_v = beta * sum_v + (1 - beta) * g * g
            w = beta * w + (1 - beta)
            v = sum_v / w
            vmax = max(vmax, v)
            if amsgrad:
                v = vmax
            bc1 = 1 - beta1**t
            if not layered:
                m = beta1 * m + (1 - beta1) * g
                if form == "paper":
                    p -= rate * math.sqrt(w) / bc1 * m / (math.sqrt(v * w) + eps)
                else:
                    p -= rate / bc1 * m / (math.sqrt(v) + eps)
            elif form == "paper":
                m = beta1 * m + (1 - beta1) * g / (math.sqrt(v) + eps)
                p -= rate / bc1 * m
            else:
                m = beta1 * m + (1 - beta1) * rate * g / (math.sqrt(v) + eps)
                lr_sum = beta1 * lr_sum + (1 - beta1) * rate
                p -= (rate / lr_sum if rate and lr_sum else 0.0) * m
            trace[t - 1][i] = p
    return trace


OPTIONS = [
    {},
    {"amsgrad": True},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": False},
    {"eps": 0.1},
    {"beta2_range": (0.3, 0.5)},  # the product of the betas vanishes
]


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.LaMAdam])
def test_maxva(cls, form, changing, options):
    got = play(cls, 0.01, changing, form=form, **options)
    assert_close(got, maxva(cls, 0.01, changing, form, **options), 0.01)


@pytest.mark.parametrize(
    "cls, lr, options",
    [
        (fusedstep.MAdam, 0.01, {"changing": True}),
        (fusedstep.LaMAdam, 0.01, {"changing": True}),
        (fusedstep.LaProp, 0.01, {"changing": True}),
        (fusedstep.LaProp, 0.01, {"changing": False, "eps": 1e-3}),
        (fusedstep.AvaGrad, 0.1, {"changing": False}),
        (fusedstep.MADGRAD, 0.01, {"changing": False, "eps": 1e-3}),
    ],
)
def test_the_forms_differ(cls, lr, options):
    """They are two algorithms here, so that comparing with each of them says something."""
    paper, released = (play(cls, lr, form=form, **options)[-1] for form in FORMS)
    assert float((paper - released).abs().max()) > 1e-6


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("cls", ["AdamW", "Adam"])
def test_adam_is_torchs(cls, weight_decay, amsgrad):
    """Also where parameters join late and pause: each counts its own steps."""
    options = {"weight_decay": weight_decay, "amsgrad": amsgrad, "cut": PIECES, "absent": ABSENT}
    got = play(getattr(fusedstep, cls), 0.01, True, **options)
    want = play(getattr(torch.optim, cls), 0.01, True, backend=None, **options)
    assert_close(got, want, 0.01)


@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.LaMAdam])
def test_our_form_beats_the_direct_one_in_float32(cls):
    """|mean| >> std: the direct form loses the variance v - u^2 to cancellation, ours does not."""
    generator = torch.Generator().manual_seed(3)
    grads = [1000 + 0.1 * torch.randn(SIZE, generator=generator) for _ in range(100)]
    variance = {}
    for dtype in (torch.float32, torch.float64):
        p = torch.nn.Parameter(start().to(dtype))
        optimizer = cls([p], lr=1e-3, backend="reference")
        for g in grads:
            p.grad = g.to(dtype)
            optimizer.step()
        variance[dtype] = optimizer.state[p]["grad_var"].double()
    want = variance[torch.float64]
    assert float(((variance[torch.float32] - want) / want).abs().max()) < 5e-2
    assert (variance[torch.float32] >= 0).all()
    spacing = float(torch.finfo(torch.float32).eps) * 1000**2  # what v - u^2 could resolve
    assert spacing > float(want.max()), "the direct form would do as well: nothing is shown"


@pytest.mark.parametrize(
    "options, beta",
    [
        ({"beta2_range": (0.5, 0.75)}, 0.75),
        ({"beta2_range": (0.5, 1.0)}, 0.9),
        ({"beta2_init": 0.625}, 0.625),
        ({"beta2_init": 0.0}, 0.0),
    ],
)
@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.LaMAdam])
def test_the_first_beta_does_not_depend_on_the_gradient(cls, options, beta):
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    p.grad = torch.tensor([0.0, 1.0, 1e-9, torch.nan], dtype=torch.float64)
    optimizer = cls([p], backend="reference", **options)
    optimizer.step()
    assert (optimizer.state[p]["beta_prod"] == beta).all()
