"""LAMB against its paper's equations; max_grad_norm against torch's clipping."""

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

LR = 0.01
MEDIAN = float(torch.stack([g.norm() for g in gradients()]).median())


def clipped(parts, max_grad_norm):
    """The gradients of one step, scaled together to a norm of at most ``max_grad_norm``."""
    if max_grad_norm is None:
        return parts
    norm = torch.cat(list(parts.values())).norm()
    return {i: g * min(1.0, max_grad_norm / (float(norm) + 1e-6)) for i, g in parts.items()}


def lamb(
    changing,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.01,
    max_grad_norm=1.0,
    cut=WHOLE,
    grads=None,
    absent=(),
):
    """LAMB, Algorithm 2 with phi(x) = x, and the clip that it is used with."""
    beta1, beta2 = betas
    x = pieces(start(), cut)
    m, v, count, trace = {}, {}, {}, []
    for t, gradient in enumerate(gradients() if grads is None else grads, 1):
        rate = schedule(t, LR) if changing else LR
        reached = {i: g for i, g in enumerate(pieces(gradient, cut)) if (t, i) not in absent}
        for i, g in clipped(reached, max_grad_norm).items():
            count[i] = count.get(i, 0) + 1
            m[i] = beta1 * m.get(i, torch.zeros_like(g)) + (1 - beta1) * g
            v[i] = beta2 * v.get(i, torch.zeros_like(g)) + (1 - beta2) * g**2
            m_hat = m[i] / (1 - beta1 ** count[i])
            v_hat = v[i] / (1 - beta2 ** count[i])
            update = m_hat / (v_hat.sqrt() + eps) + weight_decay * x[i]
            ratio = x[i].norm() / update.norm()
            if weight_decay == 0 or x[i].norm() == 0 or update.norm() == 0:
                ratio = 1.0
            x[i] = x[i] - rate * ratio * update
        trace.append(torch.cat(x))
    return trace


OPTIONS = [
    {},
    {"weight_decay": 0.0},
    {"weight_decay": 0.1, "max_grad_norm": None},
    {"max_grad_norm": MEDIAN},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"grads": quiet_gradients()},
    {"absent": ABSENT},
]


# pytorch_optimizer's Lamb is another variant: no bias correction, parameter norms cut at 10, eps in
# the ratio. The transcription alone is compared.
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("cut", [WHOLE, PIECES], ids=["whole", "pieces"])
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
def test_lamb(form, changing, cut, options):
    options = {"cut": cut, **options}
    got = play(fusedstep.LAMB, LR, changing, form=form, **options)
    assert_close(got, lamb(changing, **options), LR)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lamb_moves_a_tensor_of_zeros_with_ratio_1(decay):
    p = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    p.grad = torch.tensor([1.0, -2.0, 3.0, -4.0, 0.0], dtype=torch.float64)
    fusedstep.LAMB([p], lr=LR, weight_decay=decay, backend="reference").step()
    assert float((p.detach() + LR * p.grad.sign()).abs().max()) < 1e-4 * LR


# The clip, of every class


CLIPPED = [
    ("AdamW", {"weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("MAdam", {"form": "released", "weight_decay": 0.1}),
    ("LaMAdam", {}),
    ("LaProp", {"centered": True}),
    ("AdaMomentum", {"weight_decay": 0.1, "decoupled_weight_decay": False}),
    ("AvaGrad", {"form": "paper"}),
    ("AvaGradW", {"form": "released", "weight_decay": 0.1}),
    ("DelayedAdam", {}),
    ("MADGRAD", {"weight_decay": 0.1}),
    ("LAMB", {}),
]


def clip_and_play(cls, options, max_grad_norm, own, grads, absent=()):
    """Parameters and norms of every step, clipped by the optimizer (``own``) or by torch."""
    norms = []

    def make(groups, **how):
        optimizer = cls(groups, max_grad_norm=max_grad_norm if own else None, **how)
        params = [p for group in groups for p in group["params"]]
        clip = torch.nn.utils.clip_grad_norm_
        if own:
            optimizer.register_step_post_hook(lambda *_: norms.append(optimizer.last_grad_norm))
        else:
            optimizer.register_step_pre_hook(lambda *_: norms.append(clip(params, max_grad_norm)))
        return optimizer

    trace = play(make, LR, False, cut=PIECES, grads=grads, absent=absent, **options)
    return trace, torch.stack(norms)


@pytest.mark.parametrize("name, options", CLIPPED, ids=name_of)
def test_max_grad_norm_is_torchs_clip_over_all_groups(name, options):
    run = [getattr(fusedstep, name), options, MEDIAN]
    got, norms = clip_and_play(*run, own=True, grads=gradients(), absent=ABSENT)
    want, torchs = clip_and_play(*run, own=False, grads=gradients(), absent=ABSENT)
    assert_close(got, want, LR)
    assert float((norms / torchs - 1).abs().max()) < 1e-12
    assert (norms > MEDIAN).any() and (norms < MEDIAN).any(), "the clip has only one side here"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_norm_that_is_not_finite_does_what_torchs_clip_does(bad):
    grads = gradients()[:3]
    grads[1][4] = bad
    run = [fusedstep.AdamW, {}, 1.0]
    got, norms = clip_and_play(*run, own=True, grads=grads)
    want, torchs = clip_and_play(*run, own=False, grads=grads)
    torch.testing.assert_close(got, want, rtol=0.0, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(norms, torchs, rtol=1e-12, atol=0.0, equal_nan=True)
