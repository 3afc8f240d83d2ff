"""AvaGrad, AvaGradW and DelayedAdam against the paper's equations."""

import fusedstep
import pytest
import torch

from tests.paper import (
    ABSENT,
    FORMS,
    PIECES,
    WHOLE,
    assert_close,
    gradients,
    pieces,
    play,
    quiet_gradients,
    schedule,
    start,
)
from tests.training import name_of

LR = 0.1
NEVER = {(t, 3) for t in range(1, 41)}  # the last parameter


def counted(etas, moments, skip):
    """Mean of squares over the coordinates that count; over all where none does."""
    eta, v = torch.cat(etas), torch.cat(moments)
    if skip and (v != 0).any():
        eta = eta[v != 0]
    return eta.square().mean()


def avagrad(
    changing,
    form,
    decoupled,
    betas=(0.9, 0.999),
    eps=0.1,
    weight_decay=0.0,
    skip_zero_second_moment=False,
    cut=WHOLE,
    grads=None,
    absent=(),
):
    """AvaGrad, Algorithm 1 (paper), and the authors' code (released)."""
    (beta1, beta2), skip = betas, skip_zero_second_moment
    params = pieces(start(), cut)
    group_of = [k for k, group in enumerate(cut) for _ in group]
    m, v, count, gamma, trace = {}, {}, {}, {}, []
    for t, gradient in enumerate(gradients() if grads is None else grads, 1):
        rate = schedule(t, LR) if changing else LR
        reached = {i: g for i, g in enumerate(pieces(gradient, cut)) if (t, i) not in absent}
        for i in reached.keys() - m.keys():
            m[i], v[i], count[i] = torch.zeros_like(params[i]), torch.zeros_like(params[i]), 0
        eta = {i: 1 / (v[i].sqrt() + eps) for i in v}
        norm = counted(list(eta.values()), list(v.values()), skip).sqrt()
        old = dict(v)
        for i, g in reached.items():
            count[i] += 1
            n = count[i]
            moves = form == "paper" or n > 1
            if not decoupled:
                g = g + weight_decay * params[i]
            elif moves:
                params[i] = params[i] - rate * weight_decay * params[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            if form == "paper":
                params[i] = params[i] - rate * eta[i] / norm * m[i]
            elif moves:
                denominator = v[i].sqrt() / (1 - beta2 ** (n - 1)) ** 0.5 + eps
                step = rate * gamma[group_of[i]] / (1 - beta1**n)
                params[i] = params[i] - step * m[i] / denominator
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
        for k in {group_of[i] for i in reached}:
            members = [i for i in reached if group_of[i] == k]
            q = [old[i].sqrt() / (1 - beta2 ** count[i]) ** 0.5 + eps for i in members]
            squares = counted([1 / part for part in q], [old[i] for i in members], skip)
            gamma[k] = squares**-0.5
        trace.append(torch.cat(params))
    return trace


OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"eps": 1e-2, "betas": (0.5, 0.9)},
    {"cut": PIECES},
    {"cut": PIECES, "absent": ABSENT},
    {"cut": PIECES, "absent": ABSENT | NEVER, "weight_decay": 0.1},
    *(
        {"grads": quiet_gradients(), "cut": PIECES, "absent": absent, "eps": 1e-3, **skip}
        for absent in ((), ABSENT)
        for skip in ({}, {"skip_zero_second_moment": True})
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", [fusedstep.AvaGrad, fusedstep.AvaGradW])
def test_avagrad(cls, form, changing, options):
    got = play(cls, LR, changing, form=form, **options)
    assert_close(got, avagrad(changing, form, cls is fusedstep.AvaGradW, **options), LR)


def test_one_idle_coordinate_shrinks_every_step_unless_it_is_skipped():
    grads = gradients()
    for g in grads:
        g[0] = 0.0
    steps = {}
    for skip in (False, True):
        options = {"eps": 1e-8, "skip_zero_second_moment": skip, "grads": grads}
        trace = play(fusedstep.AvaGrad, LR, False, **options)
        steps[skip] = float((trace[-1] - trace[0])[1:].abs().max())  # all rates are equal at t = 1
    assert steps[True] > 100 * steps[False]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("cls", [fusedstep.AvaGrad, fusedstep.AvaGradW])
def test_avagrads_released_form_is_pytorch_optimizers(cls, weight_decay):
    """pytorch_optimizer decays in the first step too: there lr is 0, and nothing moves at all."""
    other = pytest.importorskip("pytorch_optimizer").AvaGrad
    rate = lambda t, lr: 0.0 if t == 1 else schedule(t, lr)  # noqa: E731
    options = {"cut": PIECES, "weight_decay": weight_decay}
    theirs = {"weight_decouple": cls is fusedstep.AvaGradW, "foreach": False}
    want = play(other, LR, rate, backend=None, **options, **theirs)
    assert_close(play(cls, LR, rate, form="released", **options), want, LR, 1e-10)


def delayed_adam(lr, changing, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, grads=None):
    """Adam that divides by the second moment of the step before (AvaGrad's paper, section 8)."""
    beta1, beta2 = betas
    p = start()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    trace = []
    for t, g in enumerate(gradients() if grads is None else grads, 1):
        rate = schedule(t, lr) if changing else lr
        g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        if t > 1:
            v_hat = v / (1 - beta2 ** (t - 1))
            step = rate * m / (1 - beta1**t) / (v_hat.sqrt() + eps)
            p = p - torch.where(v == 0, 0.0, step)
        v = beta2 * v + (1 - beta2) * g**2
        trace.append(p)
    return trace


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"grads": quiet_gradients()},
        {"grads": quiet_gradients(), "eps": 0.0},
    ],
    ids=name_of,
)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
def test_delayed_adam(form, changing, options):
    got = play(fusedstep.DelayedAdam, 0.01, changing, form=form, **options)
    assert_close(got, delayed_adam(0.01, changing, **options), 0.01)
