"""LaProp and AdaMomentum against their papers' equations."""

import math

import fusedstep
import numpy as np
import pytest
import torch

from tests.paper import (
    FORMS,
    SIZE,
    STEPS,
    assert_close,
    gradients,
    play,
    quiet_gradients,
    schedule,
    start,
)
from tests.training import model, name_of, no_warning


def laprop(
    lr,
    changing,
    form,
    betas=(0.9, 0.999),
    eps=1e-15,
    weight_decay=0.0,
    amsgrad=False,
    centered=False,
    centered_start=10,
):
    """LaProp, Algorithms 1 to 4, element by element: second moment and mean, not a variance."""
    beta1, beta2 = betas
    trace = [start() for _ in range(STEPS)]
    for i in range(SIZE):
        p = float(start()[i])
        m = v = c = vmax = lr_mean = weight = 0.0
        for t, gradient in enumerate(gradients(), 1):
            rate = schedule(t, lr) if changing else lr
            g = float(gradient[i])
            v = beta2 * v + (1 - beta2) * g * g
            c = beta2 * c + (1 - beta2) * g
            centring = centered and t > centered_start
            n = v - c * c if centring else v
            if amsgrad and (centring or not centered):
                n = vmax = max(vmax, n)
            lr_mean = beta1 * lr_mean + (1 - beta1) * rate
            weight = beta2 * weight + (1 - beta2)
            if form == "paper":
                d = g / math.sqrt(n / (1 - beta2**t) + eps)
            else:
                d = g / (math.sqrt(n / weight) + eps)
            m = beta1 * m + (1 - beta1) * rate * d
            if form == "paper":
                p -= m / (1 - beta1**t)
            elif rate:
                p -= m / (lr_mean / rate)
            p -= weight_decay * p if rate else 0.0
            trace[t - 1][i] = p
    return trace


LAPROP_OPTIONS = [
    {},
    {"weight_decay": 0.01},
    {"amsgrad": True},
    {"centered": True},
    {"centered": True, "amsgrad": True, "weight_decay": 0.01},
    {"centered": True, "centered_start": 0, "eps": 1e-8},
    {"betas": (0.0, 0.95), "eps": 1e-3},
    {"betas": (0.8, 0.0), "eps": 1e-3},
]


@pytest.mark.parametrize("options", LAPROP_OPTIONS, ids=name_of)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
def test_laprop(form, changing, options):
    got = play(fusedstep.LaProp, 0.01, changing, form=form, **options)
    assert_close(got, laprop(0.01, changing, form, **options), 0.01)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.01},
        {"amsgrad": True},
        {"centered": True},
        {"centered": True, "weight_decay": 0.01},
    ],
    ids=name_of,
)
def test_laprops_released_form_is_pytorch_optimizers(options):
    """pytorch_optimizer adds 1e-15 to the second moment, moves at lr = 0, and lets amsgrad see the
    uncentred second moment: large gradients, lr > 0 and no amsgrad with centring."""
    other = pytest.importorskip("pytorch_optimizer").LaProp
    grads = [1e6 * g for g in gradients()[:-1]]  # the schedule's last rate is 0
    theirs = {"ams_bound" if name == "amsgrad" else name: x for name, x in options.items()}
    theirs |= {"fixed_decay": True, "foreach": False}
    want = play(other, 0.01, True, backend=None, grads=grads, **theirs)
    got = play(fusedstep.LaProp, 0.01, True, grads=grads, form="released", **options)
    assert_close(got, want, 0.01, 1e-10)


def test_laprops_decay_is_not_multiplied_by_lr():
    p = torch.nn.Parameter(start())
    p.grad = torch.ones_like(p)
    optimizer = fusedstep.LaProp([p], lr=1e-300, weight_decay=0.25, backend="reference")
    optimizer.step()
    assert torch.equal(p.detach(), start() * 0.75)


def test_laprop_with_beta2_0_is_sign_descent():
    got = play(fusedstep.LaProp, 0.01, False, betas=(0.0, 0.0))[-1]
    want = start() - 0.01 * torch.stack(gradients()).sign().sum(0)
    assert float((got - want).abs().max()) < 1e-6  # eps shortens steps of small gradients


def test_centered_laprop_stays_finite_where_the_released_codes_variance_turns_negative():
    """A constant gradient in float32: the true variance tends to 0."""
    steps, beta2 = 10_000, torch.tensor(0.999)
    g = torch.linspace(0.1, 3.0, SIZE)
    p = torch.nn.Parameter(torch.zeros(SIZE))
    p.grad = g.clone()
    optimizer = fusedstep.LaProp([p], centered=True, form="released", backend="cpu")
    v, c, negative = torch.zeros(SIZE), torch.zeros(SIZE), torch.zeros(SIZE, dtype=torch.bool)
    for _ in range(steps):
        optimizer.step()
        v = v * beta2 + (1 - beta2) * g * g
        c = c * beta2 + (1 - beta2) * g
        negative |= v - c * c < 0
    assert negative.any(), "v - c^2 stays positive: nothing is shown"
    assert torch.sqrt(v - c * c).isnan().any()
    state = optimizer.state[p]
    assert all(state[name].isfinite().all() for name in ("exp_avg", "grad_mean", "grad_var"))
    assert (state["grad_var"] >= 0).all()
    assert p.isfinite().all()


def adamomentum(
    lr,
    changing,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    amsgrad=False,
    grads=None,
):
    """AdaMomentum, Algorithm 1."""
    beta1, beta2 = betas
    p = start()
    m, v, vmax = (torch.zeros_like(p) for _ in range(3))
    trace = []
    for t, g in enumerate(gradients() if grads is None else grads, 1):
        rate = schedule(t, lr) if changing else lr
        if decoupled_weight_decay:
            p = p - rate * weight_decay * p
        else:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * m**2 + eps
        vmax = torch.maximum(vmax, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (vmax if amsgrad else v) / (1 - beta2**t)
        p = p - rate * m_hat / v_hat.sqrt()
        trace.append(p)
    return trace


ADAMOMENTUM_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": False},
    {"amsgrad": True},
    {"betas": (0.5, 0.9), "eps": 1e-6},
    {"betas": (0.0, 0.0), "eps": 1e-6},
    {"grads": quiet_gradients()},
]


# pytorch_optimizer has no AdaMomentum to compare with.
@pytest.mark.parametrize("options", ADAMOMENTUM_OPTIONS, ids=name_of)
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
def test_adamomentum(form, changing, options):
    got = play(fusedstep.AdaMomentum, 0.01, changing, form=form, **options)
    assert_close(got, adamomentum(0.01, changing, **options), 0.01)


def test_adamomentum_leaves_alone_what_never_had_a_gradient():
    grads = quiet_gradients()
    got = play(fusedstep.AdaMomentum, 0.01, False, grads=grads)
    still = torch.stack(grads).abs().sum(0) == 0
    assert still.any() and torch.equal(got[-1][still], start()[still])


def test_a_decay_that_may_be_meant_for_adamw_is_told():
    params = model()
    with pytest.warns(UserWarning, match="LaProp, group 0: .* lr . weight_decay, 4e-05") as found:
        fusedstep.LaProp(params, lr=4e-4, weight_decay=0.1)
    assert found[0].filename == __file__
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.01}]
    with pytest.warns(UserWarning, match="group 1: weight_decay is 0.01.* takes 1.00% off"):
        fusedstep.LaProp(groups, lr=np.float32(1e-3))
    with pytest.warns(UserWarning, match="group 0: weight_decay is 0.1, .* takes 10.00% off"):
        added = fusedstep.LaProp(params[:1], lr=1e-3, weight_decay=0.1, capturable=True)
    with pytest.warns(UserWarning, match="group 1: weight_decay is 0.2, .* takes 20.00% off"):
        added.add_param_group({"params": params[1:], "weight_decay": 0.2})
    with no_warning():
        for lr, decay in ((4e-4, 4e-5), (4e-4, 1e-3), (0.0, 0.1), (torch.tensor(4e-4), 0.1)):
            fusedstep.LaProp(params, lr=lr, weight_decay=decay)
            fusedstep.LaProp(params, lr=lr, weight_decay=torch.tensor(decay))
