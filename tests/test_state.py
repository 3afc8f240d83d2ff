"""The optimizers' state: saved, loaded, copied, stored."""

import copy
import pickle

import fusedstep
import pytest
import torch
import torch.distributed.checkpoint as dcp
from fusedstep import testing
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from tests.conftest import TESTED_BACKENDS, device_of
from tests.training import (
    assert_same,
    every_class,
    model,
    saved_and_loaded,
    stored,
    train,
)

each_mode = pytest.mark.parametrize("mode", testing.MODES, ids=lambda mode: mode.id)


def through_a_file(scenario, fresh, path):
    return saved_and_loaded(
        {"params": scenario.params, "optimizer": scenario.optimizer.state_dict()}
    )


def through_a_distributed_checkpoint(scenario, fresh, path):
    loaded = {"params": fresh.params, "optimizer": fresh.optimizer.state_dict()}
    saved = {"params": scenario.params, "optimizer": scenario.optimizer.state_dict()}
    dcp.save(saved, checkpoint_id=path)
    dcp.load(loaded, checkpoint_id=path)
    return loaded


def resume(case, mode, through, path, backend="cpu", steps=testing.STEPS):
    """Three steps, a new optimizer, the rest; compared with the run that was not interrupted."""
    whole, first = (testing.Scenario(case, mode, "strided", "cpu") for _ in range(2))
    second = testing.Scenario(case, mode, "strided", backend, device_of(backend))
    if through is through_a_distributed_checkpoint:
        second.step(0)  # it loads into states that are there
    for t in range(3):
        whole.step(t)
        first.step(t)
    loaded = through(first, second, path)
    second.generator.set_state(first.generator.get_state())
    with torch.no_grad():
        for p, value in zip(second.params, loaded["params"], strict=True):
            p.copy_(value)
    second.optimizer.load_state_dict(loaded["optimizer"])
    for t in range(3, steps):
        whole.step(t)
        second.step(t)
        assert_same(second.snapshot(), whole.snapshot())


@each_mode
def test_saved_and_loaded_training_continues_bitwise(case, mode):
    resume(case, mode, through_a_file, None)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@each_mode
@every_class
def test_a_distributed_checkpoint_continues_bitwise(cls, mode, tmp_path):
    case = testing.Case(cls.__name__, cls, (("weight_decay", 1e-3),))
    resume(case, mode, through_a_distributed_checkpoint, tmp_path)


@pytest.mark.parametrize("backend", [*TESTED_BACKENDS, "reference"])
@every_class
def test_another_backend_continues_bitwise(cls, backend):
    case = testing.Case(cls.__name__, cls, (("weight_decay", 1e-3),))
    resume(case, testing.MODES[-1], through_a_file, None, backend, steps=4)


@each_mode
def test_every_stored_state_has_its_dtype(case, mode):
    scenario = testing.Scenario(case, mode, "ragged", "cpu")
    scenario.step(0)
    opmath = torch.float64 if mode.param is torch.float64 else torch.float32
    for state in map(scenario.optimizer.state.get, scenario.params):
        for name, value in state.items():
            if name == "step":
                assert value.dtype is torch.int64
            elif name in case.cls.carried:
                assert value.dtype is torch.float64
            elif name == "exp_avg" and "state_dtype" in mode.options:
                assert value.dtype is torch.bfloat16
            else:
                assert value.dtype is opmath
        assert ("master_param" in state) == ("master_weights" in mode.options)


def with_torchs_counts(saved):
    """Convert by the line that docs/algorithms/adamw.md gives."""
    saved["state"] = {i: {**s, "step": s["step"].float()} for i, s in saved["state"].items()}
    return saved


@pytest.mark.parametrize("begins", ["here", "there"])
@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_torchs_adamw_state_moves_over_and_back(how, begins):
    ours, theirs = model(dtype=torch.float64), model(dtype=torch.float64)
    a, b = fusedstep.AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01, **how)
    first, params, then, others = (a, ours, b, theirs) if begins == "here" else (b, theirs, a, ours)
    train(first, params, 3)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    then.load_state_dict(saved_and_loaded(with_torchs_counts(first.state_dict())))
    for seed in (5, 6):
        b.param_groups[0].update(how)  # which torch takes from what is loaded
        train(a, ours, 3, seed)
        train(b, theirs, 3, seed)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
        b = torch.optim.AdamW(theirs, lr=0.5)
        b.load_state_dict(saved_and_loaded(with_torchs_counts(a.state_dict())))
    assert b.param_groups[0]["lr"] == 0.01


def test_group_entries_that_are_unknown_stay_and_missing_ones_get_defaults():
    params, others = model(), model()
    a, b = (fusedstep.MAdam(p, delta=1e-4) for p in (params, others))
    train(a, params, 2)
    train(b, others, 2)
    saved = a.state_dict()
    saved["param_groups"][0]["my_note"] = "kept"
    for name in ("delta", "form", "max_grad_norm", "maximize"):
        del saved["param_groups"][0][name]
    a.load_state_dict(saved)
    assert a.param_groups[0]["my_note"] == "kept"
    train(a, params, 2, seed=7)
    train(b, others, 2, seed=7)
    assert_same(stored(a, params), stored(b, others))


def test_notes_in_a_state_that_are_no_parameters_stay():
    params = model()
    optimizer = fusedstep.AdamW(params, master_weights=True)
    optimizer.state["ema_loss"], optimizer.state["epoch"] = {"value": 0.5}, 3
    train(optimizer, params, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.resync_master()
    train(optimizer, params, 1)
    assert optimizer.state["ema_loss"] == {"value": 0.5} and optimizer.state["epoch"] == 3
    assert optimizer.state[params[0]]["step"] == 2


def test_notes_in_a_parameters_state_follow_its_device():
    """Such as the slow weights that Lookahead keeps there; torch moves them, too."""
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state |= {"slow": torch.zeros(3), "older": [torch.zeros(2, dtype=torch.float64), "a"]}
    other = fusedstep.AdamW(model(device="meta"))
    other.load_state_dict(saved)
    for p in other.param_groups[0]["params"]:
        slow, (older, word) = other.state[p]["slow"], other.state[p]["older"]
        assert (slow.device, older.device, word) == (p.device, p.device, "a")
        assert older.dtype is torch.float64


@every_class
def test_making_states_for_a_checkpoint_moves_no_parameter(cls):
    """torch does it by a step with a rate of 0 and gradients of 0."""
    layer = torch.nn.Linear(8, 8)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = cls(layer.parameters(), weight_decay=0.5)
    found = get_optimizer_state_dict(layer, optimizer)
    assert found["state"]["weight"]["step"] == 1
    assert all(map(torch.equal, layer.parameters(), before))


@every_class
def test_a_state_loaded_into_its_own_optimizer_changes_nothing(cls):
    """Accelerate does so before the first step; some do so at every one."""
    params, others = model(), model()
    a, b = cls(params), cls(others)
    for t in range(3):
        a.load_state_dict(a.state_dict())
        train(a, params, 1, seed=t)
        train(b, others, 1, seed=t)
    assert_same(stored(a, params), stored(b, others))


def test_a_loaded_state_is_a_copy():
    params, others = model(), model()
    a, b = fusedstep.MAdam(params), fusedstep.MAdam(others)
    train(a, params, 2)
    b.load_state_dict(a.state_dict())
    want = stored(a, params)
    train(b, others, 1)
    assert_same(stored(a, params), want)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_live_optimizer_can_be_copied(clone):
    params = model()
    optimizer = fusedstep.MAdam(params, backend="cpu", form="released")
    train(optimizer, params, 2)
    twin = clone(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    assert twin.backend == "cpu" and twin._plan is None
    train(optimizer, params, 2, seed=3)
    train(twin, twins, 2, seed=3)
    assert_same(stored(twin, twins), stored(optimizer, params))


def test_a_model_that_was_float32_for_a_while_keeps_what_it_learned():
    (p,) = params = model((5,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, lr=0.5, master_weights=True)
    train(optimizer, params, 1)
    p.data = p.data.float()
    train(optimizer, params, 10)
    assert "master_param" not in optimizer.state[p]
    p.data = p.data.bfloat16()
    before = p.detach().clone()
    train(optimizer, params, 1)
    assert (optimizer.state[p]["master_param"] - before).abs().max() < 1.0


def test_masters_gather_steps_too_small_for_bfloat16():
    (p,) = params = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    optimizer = fusedstep.AdamW(params, lr=1e-3, weight_decay=0.0, master_weights=True)
    for _ in range(20):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert float(optimizer.state[p]["master_param"][0]) == pytest.approx(0.98, abs=1e-4)
    assert p[0] == torch.tensor(0.98, dtype=torch.bfloat16)


def test_float64_states_stay_float64():
    (p,) = params = model((3,), dtype=torch.float64)
    optimizer = fusedstep.AdamW(params, state_dtype=torch.bfloat16)
    train(optimizer, params, 1)
    assert optimizer.state[p]["exp_avg"].dtype is torch.float64


def test_a_count_that_is_a_number_is_not_rounded():
    (p,) = params = model((3,))
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    optimizer.state[p]["step"] = 2**24 + 1
    train(optimizer, params, 1)
    assert optimizer.state[p]["step"] == 2**24 + 2


def test_a_master_put_in_by_hand_is_taken_out_where_none_is_kept():
    (p,) = params = model((4,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 2)
    optimizer.state[p]["master_param"] = torch.full((4,), 9.0)
    train(optimizer, params, 1)
    assert "master_param" not in optimizer.state[p]
