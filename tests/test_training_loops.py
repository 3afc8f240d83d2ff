"""The loops people train with: schedulers, scalers, hooks, averaging, saving, torch.compile."""

import copy

import fusedstep
import pytest
import torch
from fusedstep import testing
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tests.training import (
    WITHOUT_SUMS,
    assert_same,
    every_class,
    give_gradients,
    model,
    on_every_backend,
    stored,
    train,
)

# Whatever a scheduler writes into a group is taken as it is.
SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda t: 0.9**t},
    "MultiplicativeLR": {"lr_lambda": lambda t: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 5]},
    "ConstantLR": {"total_iters": 3},
    "LinearLR": {"total_iters": 5},
    "ExponentialLR": {"gamma": 0.8},
    "PolynomialLR": {"total_iters": 6, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 3},  # moves betas too
    "OneCycleLR": {"max_lr": 1e-2, "total_steps": 9},
    "ReduceLROnPlateau": {"patience": 1},
    "SWALR": {"swa_lr": 1e-2, "anneal_epochs": 2},
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float_lr", "tensor_lr"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_works_unmodified(name, tensor_lr):
    moved = []
    for cls in (fusedstep.AdamW, torch.optim.AdamW):
        params = model(dtype=torch.float64)
        optimizer = cls(params, lr=torch.tensor(1e-3, dtype=torch.float64) if tensor_lr else 1e-3)
        make = getattr(lr_scheduler, name, None) or getattr(swa_utils, name)
        scheduler = make(optimizer, **SCHEDULERS[name])
        for t in range(8):
            train(optimizer, params, 1, seed=t)
            scheduler.step(*((1.0,) if name == "ReduceLROnPlateau" else ()))
        moved.append(params)
    torch.testing.assert_close(*moved, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_schedule_that_ends_at_0_may_round_below_it():
    """torch's LinearLR does for every second length; the step there is one of rate 0."""
    found = {}
    for length in range(1, 30):
        params = model()
        optimizer = fusedstep.MADGRAD(params, lr=1e-3)
        train(optimizer, params, 1)
        scheduler = lr_scheduler.LinearLR(optimizer, end_factor=0.0, total_iters=length)
        for _ in range(length):
            scheduler.step()
        below = optimizer.param_groups[0]["lr"] < 0
        train(optimizer, params, 1)
        found.setdefault(below, stored(optimizer, params))
        assert_same(stored(optimizer, params), found[below])
    optimizer = fusedstep.MADGRAD(params := model(), lr=1e-3)
    train(optimizer, params, 1)
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, 1)
    assert_same(stored(optimizer, params), found[True])


@every_class
def test_a_layer_that_was_not_reached_yet_is_left_out(cls):
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.LazyLinear(2)])
    optimizer = cls(layers.parameters(), max_grad_norm=1.0)
    for t in range(4):
        optimizer.zero_grad()
        out = layers[0](torch.ones(2, 3))
        (layers[1](out) if t > 1 else out).sum().backward()
        optimizer.step()
    assert optimizer.state[layers[0].weight]["step"] == 4
    assert layers[1].weight.isfinite().all() and optimizer.state[layers[1].weight]["step"] >= 2


@on_every_backend
def test_gradients_are_the_same_after_a_step(cls, backend, device):
    params = model(device=device)
    options = {"max_grad_norm": 0.1, "maximize": True, "weight_decay": 0.1}
    optimizer = cls(params, backend=backend, **options)
    optimizer.grad_scale = torch.tensor(8.0, device=device)
    optimizer.found_inf = torch.tensor(0.0, device=device)
    give_gradients(params)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@every_class
def test_five_thousand_steps_count_in_a_bfloat16_model(cls):
    """The count is an integer; masters take the steps of the float32 model."""
    (half,), (full,) = (model((8,), dtype=d) for d in (torch.bfloat16, torch.float32))
    full.data.copy_(half)
    a, b = cls([half], master_weights=True), cls([full])
    half.grad = torch.linspace(-1, 1, 8, dtype=torch.bfloat16)
    full.grad = half.grad.float()
    for _ in range(5000):
        a.step()
        b.step()
    assert a.state[half]["step"].dtype is torch.int64 and int(a.state[half]["step"]) == 5000
    assert torch.equal(a.state[half]["master_param"], full)


UNSUMMED = [case for case in testing.CASES if case.cls in WITHOUT_SUMS and "clipped" not in case.id]


@pytest.mark.parametrize("case", UNSUMMED, ids=lambda case: case.id)
def test_how_a_tensor_is_cut_does_not_matter(case, backend, device):
    """N10: no element depends on its index, length or alignment, for rules without a norm."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1100, generator=generator)
    grads = [testing.gradient((1100,), generator, special=True).float() for _ in range(3)]
    found = []
    for cuts in ([1100], [1, 6, 1017, 76]):
        params = [torch.nn.Parameter(v.to(device)) for v in values.clone().split(cuts)]
        optimizer = case.cls(params, backend=backend, **dict(case.options))
        for g in grads:
            for p, part in zip(params, g.split(cuts), strict=True):
                p.grad = part.to(device)
            optimizer.step()
        found.append(torch.cat([p.detach().cpu() for p in params]))
    assert_same({"params": found[1]}, {"params": found[0]})


def test_hooks_run_before_and_after_a_step():
    params, told = model(), []
    optimizer = fusedstep.MAdam(params)
    train(optimizer, params, 1)
    hooks = [
        optimizer.register_step_pre_hook(lambda *given: told.append(("pre", *given))),
        optimizer.register_step_post_hook(lambda *given: told.append(("post", *given))),
        register_optimizer_step_pre_hook(lambda *_: told.append("pre")),
        register_optimizer_step_post_hook(lambda *_: told.append("post")),
    ]
    for hook in hooks:
        train(optimizer, params, 1)
        hook.remove()
    given = (optimizer, (optimizer,), {})
    own = [("pre", *given), ("post", *given)]
    assert told == ["pre", *own, "post", "pre", own[1], "post", "pre", "post", "post"]
    train(optimizer, params, 1)
    assert len(told) == 10


class OwnStep(fusedstep.AdamW):
    def step(self, closure=None):
        return super().step(closure)


def seven():
    return 7.0


GIVEN = {
    "nothing": ((), {}),
    "None": ((None,), {}),
    "a closure": ((seven,), {}),
    "a closure by name": ((), {"closure": seven}),
}


@pytest.mark.parametrize("args, kwargs", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("cls", [fusedstep.AdamW, OwnStep])
def test_hooks_are_told_once_and_the_same_as_torchs(cls, args, kwargs):
    told = []
    for kind in (cls, torch.optim.SGD):
        optimizer, calls = kind(model((3,))), []
        optimizer.register_step_pre_hook(lambda *given, calls=calls: calls.append(given))
        optimizer.register_step_post_hook(lambda *given, calls=calls: calls.append(given))
        optimizer.step(*args, **kwargs)
        told.append([(given[1:], by_name) for _, given, by_name in calls])
    assert told[0] == told[1] == [(args, kwargs)] * 2


def test_a_hook_may_exchange_the_arguments():
    (p,) = model((3,))
    optimizer = fusedstep.AdamW([p])
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {"closure": lambda: 5.0}))
    assert optimizer.step() == 5.0


def test_hooks_run_within_a_step_that_was_put_in_its_place(monkeypatch):
    """As torch's do: torch wraps the step of a class when it builds an optimizer of it."""
    (p,), told = model((3,)), []
    optimizer = fusedstep.AdamW([p])
    optimizer.register_step_pre_hook(lambda *_: told.append("pre"))
    original = fusedstep.AdamW.step
    monkeypatch.setattr(fusedstep.AdamW, "step", lambda self: original(self))
    optimizer.step()
    assert told == ["pre"]


def test_a_profiler_sees_the_step_by_its_name():
    params = model()
    optimizer = fusedstep.MAdam(params)
    give_gradients(params)
    with torch.profiler.profile() as seen:
        optimizer.step()
    assert "Optimizer.step#MAdam.step" in {event.key for event in seen.key_averages()}


@every_class
def test_an_optimizer_for_each_parameter_steps_in_backward(cls):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    twin, x = copy.deepcopy(layers), torch.randn(7, 6)
    options = {"max_grad_norm": None}  # none can clip by all gradients
    if cls.survey is not None:
        options["form"] = "released"  # which has a mean for each group
    whole = cls([{"params": [p]} for p in twin.parameters()], **options)
    own = {p: cls([p], **options) for p in layers.parameters()}

    def step(p):
        own[p].step()
        p.grad = None

    for p in layers.parameters():
        p.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        layers(x).square().mean().backward()
        whole.zero_grad()
        twin(x).square().mean().backward()
        whole.step()
    for p, q in zip(layers.parameters(), twin.parameters(), strict=True):
        assert p.grad is None and torch.equal(p, q)


@every_class
def test_a_compiled_training_step_may_call_the_optimizer(cls):
    """Dynamo breaks the graph at our step and runs it as it is."""
    params, twins = model((4, 5)), model((4, 5))
    a, b = cls(params), cls(twins)
    x = torch.randn(3, 4)

    def train_step(p, optimizer):
        optimizer.zero_grad()
        (x @ p).square().mean().backward()
        optimizer.step()

    compiled = torch.compile(train_step, backend="eager")
    for _ in range(3):
        compiled(params[0], a)
        train_step(twins[0], b)
    assert_same(stored(a, params), stored(b, twins))


KINDS = {
    "pre": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "post": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "pre of all": lambda optimizer, hook: register_optimizer_step_pre_hook(hook),
    "post of all": lambda optimizer, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_of_one_kind_alone_runs(kind):
    params, told = model(), []
    optimizer = fusedstep.AdamW(params)
    handle = KINDS[kind](optimizer, lambda *_: told.append(kind))
    train(optimizer, params, 1)
    handle.remove()
    assert told == [kind]
