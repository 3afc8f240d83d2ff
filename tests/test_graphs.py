"""CUDA graphs, as far as they can be tested without a GPU; replays are in test_gpu.py."""

import contextlib
import copy
import pickle
from types import SimpleNamespace

import fusedstep
import pytest
import torch
from fusedstep import graphs
from fusedstep.step_table import StepTable

from tests.training import (
    assert_same,
    every_class,
    give_gradients,
    model,
    no_warning,
    stored,
    train,
)


@every_class
def test_capturable_changes_no_bit_and_schedulers_fill_its_tensors(cls):
    results = []
    for capturable in (False, True):
        params = model()
        optimizer = cls(params, max_grad_norm=1.0, capturable=capturable)
        lr = optimizer.param_groups[0]["lr"]
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for t in range(3):
            give_gradients(params, t)
            optimizer.step()
            scheduler.step()
        assert (optimizer.param_groups[0]["lr"] is lr) == capturable
        results.append(stored(optimizer, params))
    assert_same(*results)


@every_class
def test_capturable_makes_every_live_number_a_tensor(cls):
    optimizer = cls(model(), max_grad_norm=1.0, capturable=True)
    optimizer.add_param_group({"params": model(), "lr": 0.25, "weight_decay": 0.0})
    assert optimizer.param_groups[1]["lr"].item() == 0.25
    copies = [optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    loaded = cls(model(), max_grad_norm=1.0, capturable=True)
    loaded.load_state_dict(cls(model(), max_grad_norm=1.0).state_dict())  # saved as numbers
    for each in [*copies, loaded]:
        for group in each.param_groups:
            numbers = graphs.live_numbers(group, optimizer.defaults)
            assert {"lr", "weight_decay", "max_grad_norm"} <= set(numbers)
            assert ("momentum" in numbers) == bool(optimizer.defaults.get("momentum"))
            assert all(isinstance(n, torch.Tensor) and n.ndim == 0 for n in numbers.values())


def test_what_a_user_keeps_in_a_group_stays_as_it_is():
    pair = type("Pair", (list,), {})((0.9, 0.99))  # as a loader of YAML may make
    group = {"params": model(), "beta_schedule": "cosine", "momentum_steps": 5}
    optimizer = fusedstep.AdamW([group], betas=pair, capturable=True)
    kept = optimizer.param_groups[0]
    assert type(kept["betas"]) is type(pair)
    assert kept["beta_schedule"] == "cosine" and type(kept["momentum_steps"]) is int
    numbers = graphs.live_numbers(kept, optimizer.defaults)
    assert set(numbers) == {"lr", "betas[0]", "betas[1]", "eps", "weight_decay"}


def test_a_momentum_of_0_stays_a_number():
    """It selects, once and for all, a kernel that needs less memory."""
    optimizer = fusedstep.MADGRAD(model(), momentum=0.0, capturable=True)
    group = optimizer.param_groups[0]
    assert group["momentum"] == 0.0 and not isinstance(group["momentum"], torch.Tensor)
    assert "momentum" not in graphs.live_numbers(group, optimizer.defaults)
    (group,) = fusedstep.MADGRAD(model(), momentum=torch.tensor(0.0)).param_groups
    assert graphs.is_live("momentum", group["momentum"]), "whose value is not read"


def test_numbers_are_where_the_parameters_are_if_there_are_any():
    away = SimpleNamespace(device=torch.device("meta"), is_meta=False)  # as if it had memory there
    for params in ([], [away]):
        group = {"params": params, "lr": torch.tensor(0.5)}
        graphs.make_live(group, ["lr"])
        assert {group["lr"].device} >= {p.device for p in params}


def begin_capture(patch):
    """Of a GPU's stream, as far as the optimizer can tell."""
    patch.setattr(graphs, "capturing", lambda: True)
    patch.setattr(graphs, "on_gpu", lambda t: isinstance(t, torch.Tensor))


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps", "betas[1]", "max_grad_norm"])
def test_capturing_a_number_is_refused_by_name(name, monkeypatch):
    begin_capture(monkeypatch)
    params = model()
    optimizer = fusedstep.AdamW(params, max_grad_norm=1.0, capturable=True)
    group = optimizer.param_groups[0]
    if name == "betas[1]":
        group["betas"] = (group["betas"][0], 0.875)
    else:
        group[name] = 0.875
    give_gradients(params)
    before = stored(optimizer, params)
    with pytest.raises(RuntimeError, match=r"group 0: .* is 0.875: .* capturable=True") as error:
        optimizer.step()
    assert name in str(error.value)
    assert_same(stored(optimizer, params), before)


def test_capturing_a_number_on_another_device_is_refused(monkeypatch):
    begin_capture(monkeypatch)
    params = model()
    optimizer = fusedstep.AdamW(params, capturable=True)
    optimizer.param_groups[0]["eps"] = torch.tensor(1e-8, device="meta")
    give_gradients(params)
    with pytest.raises(RuntimeError, match="eps is a tensor on meta, and a parameter is on cpu"):
        optimizer.step()
    optimizer.param_groups[0]["eps"] = torch.tensor(1e-8)
    other = torch.nn.Parameter(torch.ones(2, device="meta"))
    optimizer.param_groups[0]["params"].append(other)
    with pytest.raises(RuntimeError, match="needs a plan"):  # nothing is read there as yet
        optimizer.step()
    other.grad = torch.ones_like(other)
    with pytest.raises(RuntimeError, match="lr is a tensor on cpu, and a parameter is on meta"):
        optimizer.step()
    assert not optimizer.state


def test_capturing_a_step_of_cpu_parameters_is_refused(monkeypatch):
    monkeypatch.setattr(graphs, "capturing", lambda: True)
    params = model()
    optimizer = fusedstep.AdamW(params, capturable=True)
    give_gradients(params)
    with pytest.raises(RuntimeError, match="group 0 has a parameter on cpu: .* no replay"):
        optimizer.step()


@pytest.mark.parametrize("planned", [False, True], ids=["no step yet", "gradients of others"])
def test_capturing_a_step_that_has_to_be_planned_is_refused(planned, monkeypatch):
    params = model()
    optimizer = fusedstep.AdamW(params, capturable=True)
    if planned:
        give_gradients(params[1:])
        optimizer.step()
    give_gradients(params)
    before = stored(optimizer, params)
    begin_capture(monkeypatch)
    with pytest.raises(RuntimeError, match="AdamW: .* needs a plan .* outside of the graph"):
        optimizer.step()
    assert_same(stored(optimizer, params), before)
    monkeypatch.undo()
    train(optimizer, params, 2)  # and outside of the graph it goes on


def test_capturing_beside_a_stream_of_another_device_is_refused(monkeypatch):
    """Its launches would run at once, and in no replay."""
    params = model()
    optimizer = fusedstep.AdamW(params, capturable=True)
    train(optimizer, params, 1)
    give_gradients(params)
    before = stored(optimizer, params)
    launch = SimpleNamespace(device="cuda:1", step_table=SimpleNamespace(can_capture=lambda: True))
    gatherer = SimpleNamespace(gather=lambda *_: (True, None))
    plan = SimpleNamespace(launches=[launch], gatherer=gatherer)
    monkeypatch.setattr(optimizer, "_plan", plan)
    monkeypatch.setattr(graphs, "on_gpu", lambda t: isinstance(t, torch.Tensor))
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda of: contextlib.nullcontext(asked.append(of)))
    found = iter([True, False])
    monkeypatch.setattr(graphs, "capturing", lambda: next(found))
    with pytest.raises(RuntimeError, match="parameters on cuda:1, whose current stream is not"):
        optimizer.step()
    assert asked == ["cuda:1"]
    assert_same(stored(optimizer, params), before)


def test_a_captured_step_keeps_what_its_replays_read(monkeypatch):
    """Here the "captured" step runs at once, as any other."""
    found = []
    for captured in (False, True):
        params = [*model(), *model(dtype=torch.bfloat16)]
        optimizer = fusedstep.AdamW(params, capturable=True)
        train(optimizer, params, 1)
        tables = [launch.step_table for launch in optimizer._plan.launches]
        with monkeypatch.context() as patched:
            if captured:
                begin_capture(patched)
                patched.setattr(torch.cuda, "device", contextlib.nullcontext)
                for table in tables:
                    table._spare = torch.zeros_like(table.host)  # as a GPU's has one
            train(optimizer, params, 1, seed=1)
        found.append(stored(optimizer, params))
    assert_same(*found)
    ((plan, kept, held, rows, *_),) = optimizer._captured
    states = {id(t) for state in optimizer.state.values() for t in state.values()}
    assert states and states <= set(map(id, held))
    assert plan is optimizer._plan and rows is optimizer._rows and optimizer._in_graph
    assert [each.tolist() for each in kept] == [table.host.tolist() for table in tables]
    assert len(kept) == 2


def test_a_step_that_leaves_the_plan_of_a_graph_warns():
    params = model()
    optimizer = fusedstep.AvaGrad(params)
    give_gradients(params[1:])
    optimizer.step()
    optimizer._in_graph = True
    with no_warning():
        optimizer.step()  # by the same plan
    give_gradients(params)
    with pytest.warns(UserWarning, match="AvaGrad: .* Capture again") as told:
        optimizer.step()
    assert told[0].filename == __file__
    params[0].data = params[0].data.clone()
    with no_warning():
        optimizer.step()  # planned again, but by no graph's plan


def test_what_is_only_recorded_brings_no_sums():
    results = []
    for recorded in (False, True):
        params = model()
        optimizer = fusedstep.AvaGrad(params)
        train(optimizer, params, 2)
        for p in params:
            optimizer.state[p]["exp_avg_sq"].mul_(4.0)
        if recorded:
            assert len(optimizer._plan.rounds(optimizer, capturing=True)) == 2, "with a survey"
        train(optimizer, params, 2)
        results.append(stored(optimizer, params))
    assert_same(*results)


@pytest.fixture
def table(monkeypatch):
    """A table that takes its device for another than the host."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    table = StepTable(3, torch.device("cpu"))
    table.shared, table.host = False, torch.zeros(3, dtype=torch.int64)
    return table


def write(table, *values):
    table.host.copy_(torch.tensor(values))


def test_a_table_is_sent_where_it_changed(table):
    write(table, 1, 2, 3)
    table.send()
    assert table.device.tolist() == [1, 2, 3]
    table.device.zero_()
    table.send()  # nothing has changed
    assert table.device.tolist() == [0, 0, 0]
    write(table, 1, 2, 4)
    table.send()
    assert table.device.tolist() == [1, 2, 4]


def test_a_replay_brings_its_own_table_and_later_steps_theirs(table):
    assert not table.can_capture()
    write(table, 1, 1, 1)
    table.send()
    assert table.can_capture()
    write(table, 2, 2, 2)
    captured = table.capture()
    assert not table.can_capture(), "a second capture must not write into the first's memory"
    write(table, 3, 3, 3)
    for _ in range(2):
        table.send()  # though the host has not changed it
        assert table.device.tolist() == [3, 3, 3]
        table.device.copy_(captured)  # what a replay does
        assert table.device.tolist() == [2, 2, 2]
    assert table.can_capture()


def test_a_table_that_was_sent_under_inference_mode_can_be_captured_outside(table):
    with torch.inference_mode():
        table.send()
        write(table, 1, 2, 3)
        table.send()
    assert table.capture().tolist() == [1, 2, 3]


@every_class
def test_options_that_are_tensors_reach_kernels_themselves(cls):
    """A value computed from one would not follow its changes."""
    optimizer = cls([torch.nn.Parameter(torch.ones(1))])
    (group,) = optimizer.param_groups
    for name in optimizer.defaults.keys() - {"max_grad_norm", "algorithm"}:
        tensor = torch.tensor(0.5, dtype=torch.float64)
        for value in (tensor, (torch.tensor(0.25), tensor)):
            try:
                optimizer.check_group("here", {**group, name: value})
            except (ValueError, TypeError):
                continue
            assert any(v is tensor for v in optimizer._hyper_values({**group, name: value})), name
