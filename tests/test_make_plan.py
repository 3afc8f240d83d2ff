"""Planning a step: it is done whole or not at all, wherever torch makes new tensors by default."""

from collections import UserDict
from itertools import count

import fusedstep
import pytest
import torch
from fusedstep import gather, state_tensors
from fusedstep.backends import CpuBackend
from fusedstep.launch import Launch

from tests.training import (
    CLASSES,
    assert_same,
    every_class,
    give_gradients,
    model,
    nothing_moves,
    stored,
    train,
)


@pytest.mark.parametrize("where", ["a state", "a table"])
@every_class
def test_what_ends_it_loses_nothing(cls, where, monkeypatch):
    """What ends it: too little memory, or an interrupt from the keyboard."""
    params = model()
    optimizer = cls(params)
    give_gradients(params[:1])
    optimizer.step()
    give_gradients(params)
    before = {p: dict(optimizer.state.get(p, {})) for p in params}
    kept = {p: optimizer.state.get(p) for p in params}
    made, completed, tables = [], state_tensors.completed, Launch.__post_init__

    def stops(*args):
        made.append(completed(*args))
        if len(made) == 2:
            raise KeyboardInterrupt
        return made[-1]

    def has_no_memory(launch):
        tables(launch)
        raise MemoryError

    with monkeypatch.context() as patched:
        if where == "a state":
            patched.setattr(state_tensors, "completed", stops)
        else:
            patched.setattr(Launch, "__post_init__", has_no_memory)
        with pytest.raises((KeyboardInterrupt, MemoryError)):
            optimizer.step()
    assert before == {p: dict(optimizer.state.get(p, {})) for p in params}
    optimizer.step()
    assert all(optimizer.state[p] is kept[p] for p in params[:1]), "who holds a state keeps it"
    others = model()
    other = cls(others)
    give_gradients(others[:1])
    other.step()
    give_gradients(others)
    other.step()
    assert_same(stored(optimizer, params), stored(other, others))


def stop_at_launch(number, optimizer, monkeypatch):
    """Interrupt a step before one of its launches, the first being 0."""
    launches, apply = count(), CpuBackend.apply

    def stops(backend, launch, work):
        if next(launches) == number:
            raise KeyboardInterrupt
        apply(backend, launch, work)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CpuBackend, "apply", stops)
        optimizer.step()


@every_class
def test_sums_that_were_left_half_done_are_not_gone_on_with(cls, monkeypatch):
    """The norm of all gradients is summed by two launches here."""
    results = []
    for interrupted in (True, False):
        params = [*model(), *model(dtype=torch.float64)]
        optimizer = cls(params, max_grad_norm=1.0)
        train(optimizer, params, 1)
        give_gradients(params, 1)
        if interrupted:
            stop_at_launch(1, optimizer, monkeypatch)
        optimizer.step()
        results.append({**stored(optimizer, params), "norm": optimizer.last_grad_norm})
    assert_same(*results)


def test_a_missing_kernel_is_told_before_another_moves_anything():
    """As with a build that is older than the Python files."""

    class Newer(fusedstep.DelayedAdam):
        def variant(self, group):
            return 9 * group["maximize"]

    params = model()
    give_gradients(params)
    optimizer = Newer([{"params": params[:1]}, {"params": params[1:], "maximize": True}])
    message = "no CPU kernel delayed_adam, variant 9, .*`pip install"
    with nothing_moves(params), pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert not optimizer.state


def test_another_backend_is_taken_up(monkeypatch):
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    monkeypatch.setattr(CpuBackend, "apply", lambda *_: pytest.fail("it is the old one"))
    optimizer.backend = "reference"
    train(optimizer, params, 1)


@pytest.mark.filterwarnings("ignore:.*are left out")
@every_class
@pytest.mark.parametrize(
    "name, values", [("state_dtype", (None, torch.bfloat16)), ("master_weights", (False, True))]
)
def test_options_that_are_attributes_may_change(cls, name, values):
    """After the change, a step is that of an optimizer made with the new value."""
    for before, after in (values, values[::-1]):
        params, others = (model((400,), dtype=torch.bfloat16) for _ in range(2))
        optimizer = cls(params, lr=0.3, **{name: before})
        train(optimizer, params, 2)
        other = cls(others, lr=0.3, **{name: after})
        for p, q in zip(params, others, strict=True):
            q.data.copy_(p.data)
        other.load_state_dict(optimizer.state_dict())
        setattr(optimizer, name, after)
        train(optimizer, params, 2)
        train(other, others, 2)
        assert_same(stored(optimizer, params), stored(other, others))


@pytest.mark.parametrize(
    "name, value",
    [("state_dtype", torch.float64), ("state_dtype", torch.int8), ("master_weights", "no"),
     ("backend", "gpu"), ("capturable", 2)],
)  # fmt: skip
def test_what_is_no_choice_is_refused_at_once(name, value):
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    before = stored(optimizer, params)
    with pytest.raises(ValueError, match=f"AdamW: {name} is {value!r}; choose one of"):
        setattr(optimizer, name, value)
    assert_same(stored(optimizer, params), before)
    train(optimizer, params, 1)


def test_a_step_on_another_stream_has_tables_of_its_own(monkeypatch):
    """The old plan's go back to the old stream: a launch there may still read them."""
    current = "one"
    monkeypatch.setattr(gather, "_streams", lambda devices: dict.fromkeys(devices, current))
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    first = optimizer._plan
    train(optimizer, params, 1)
    assert optimizer._plan is first
    current = "other"
    optimizer._in_graph = True  # whose captures keep it
    train(optimizer, params, 1)
    assert optimizer._plan is first
    optimizer._in_graph = False
    train(optimizer, params, 1)
    assert optimizer._plan is not first


@every_class
def test_states_follow_their_parameters_dtype_in_a_step_without_gradients(cls):
    first, second = params = model((4,), (3,), dtype=torch.float64)
    optimizer = cls(params, max_grad_norm=1.0)
    train(optimizer, params, 1)
    optimizer.zero_grad()
    second.data = second.data.float()
    optimizer.step()
    for p in (first, second):
        dtypes = {value.dtype for value in optimizer.state[p].values() if value.ndim}
        assert dtypes == {p.dtype}


def test_a_loaded_optimizer_has_no_norm_yet():
    params = model()
    optimizer = fusedstep.AdamW(params, max_grad_norm=1.0)
    train(optimizer, params, 1)
    assert optimizer.last_grad_norm > 0
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.last_grad_norm is None


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_class
def test_torchs_default_device_does_not_matter(cls, backend):
    results = []
    for device in ("cpu", "meta"):
        params = model()
        with torch.device(device):
            optimizer = cls(params, max_grad_norm=1.0, backend=backend)
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            for p in params:
                optimizer.state[p]["step"] = 7  # a number becomes a tensor
            optimizer.step()
        results.append(stored(optimizer, params))
    assert_same(*results)


def test_live_numbers_outlast_parameters_without_memory():
    with torch.device("meta"):
        net = torch.nn.Linear(4, 1)
        optimizer = fusedstep.AdamW(net.parameters(), lr=0.5, capturable=True)
    assert optimizer.param_groups[0]["lr"] == 0.5  # and not a tensor that has lost it


CONTAINERS = {
    "its state is a UserDict": lambda optimizer: setattr(
        optimizer, "state", UserDict(optimizer.state)
    ),
    "parameter 1: its state is a UserDict": lambda optimizer: optimizer.state.update(
        {p: UserDict(optimizer.state[p]) for p in optimizer.param_groups[0]["params"][1:]}
    ),
    'AdamW: its "param_groups" is a tuple': lambda optimizer: setattr(
        optimizer, "param_groups", tuple(optimizer.param_groups)
    ),
    "group 0: it is a UserDict": lambda optimizer: setattr(
        optimizer, "param_groups", [UserDict(optimizer.param_groups[0])]
    ),
    'its "params" is a ParameterList': lambda optimizer: optimizer.param_groups[0].update(
        params=torch.nn.ParameterList(optimizer.param_groups[0]["params"])
    ),
}


@pytest.mark.parametrize("message", CONTAINERS)
def test_containers_whose_changes_would_not_be_seen(message):
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    CONTAINERS[message](optimizer)
    told = f"{message}, within which a step sees no change"
    with nothing_moves(params), pytest.raises(TypeError, match=told):
        optimizer.step()


@pytest.mark.parametrize("cls", [fusedstep.AvaGrad, fusedstep.LaProp])
def test_an_eps_that_a_parameters_new_dtype_rounds_to_nothing(cls):
    (p,) = params = model((4,), dtype=torch.float64)
    optimizer = cls(params, eps=1e-50)
    train(optimizer, params, 1)
    p.grad = None
    p.data = p.data.float()
    give_gradients(params)
    with pytest.raises(ValueError, match="eps is 1e-50, which is 0 in the arithmetic of"):
        optimizer.step()


def test_no_class_needs_a_group():
    """A user may take all of them out."""
    for cls in CLASSES:
        optimizer = cls(model())
        optimizer.param_groups.clear()
        optimizer.step()


def test_what_ends_it_converts_no_state(monkeypatch):
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    train(optimizer, params, 1)
    before = {p: dict(optimizer.state[p]) for p in params}
    optimizer.master_weights, optimizer.state_dtype = False, torch.bfloat16

    def has_no_memory(launch):
        raise MemoryError

    monkeypatch.setattr(Launch, "__post_init__", has_no_memory)
    with pytest.raises(MemoryError):
        optimizer.step()
    assert before == {p: dict(optimizer.state[p]) for p in params}
