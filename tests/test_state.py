"""The optimizers' state: saved, loaded, copied, stored."""

import copy
import io
import pickle

import fusedstep
import pytest
import torch
from fusedstep import testing

from tests.training import assert_same, every_class, model, stored, train

MADAM = fusedstep.MAdam


@pytest.mark.parametrize("mode", testing.MODES, ids=lambda mode: mode.id)
@every_class
def test_saved_and_loaded_training_continues_bitwise(cls, mode):
    case = testing.Case(cls.__name__, cls, (("weight_decay", 0.1),))
    whole, first, second = (testing.Scenario(case, mode, "strided", "cpu") for _ in range(3))
    for t in range(3):
        whole.step(t)
        first.step(t)
        second.generator.set_state(first.generator.get_state())
    file = io.BytesIO()
    torch.save({"optimizer": first.optimizer.state_dict(), "params": first.params}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    with torch.no_grad():
        for p, value in zip(second.params, loaded["params"], strict=True):
            p.copy_(value)
    second.optimizer.load_state_dict(loaded["optimizer"])
    for t in range(3, testing.STEPS):
        whole.step(t)
        second.step(t)
    assert_same(second.snapshot(), whole.snapshot())


@every_class
def test_every_stored_state_has_its_dtype(cls):
    params = model(dtype=torch.bfloat16)
    optimizer = cls(params, master_weights=True, state_dtype=torch.bfloat16)
    train(optimizer, params, 1)
    dtypes = {name: value.dtype for name, value in optimizer.state[params[0]].items()}
    assert dtypes.pop("step") is torch.int64
    assert dtypes.pop("exp_avg", torch.bfloat16) is torch.bfloat16
    assert {dtypes.pop(name) for name in cls.carried} <= {torch.float64}
    assert set(dtypes.values()) == {torch.float32}


def test_torchs_adamw_state_moves_over():
    ours, theirs = model(dtype=torch.float64), model(dtype=torch.float64)
    b = torch.optim.AdamW(theirs, lr=0.01)
    train(b, theirs, 3)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    a = fusedstep.AdamW(ours)
    a.load_state_dict(b.state_dict())
    train(a, ours, 3, seed=5)
    train(b, theirs, 3, seed=5)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_loading_before_the_first_step_works():
    params = model()
    optimizer = MADAM(params)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, params, 2)
    assert int(optimizer.state[params[0]]["step"]) == 2


def test_a_loaded_state_is_a_copy():
    params, others = model(), model()
    a, b = MADAM(params), MADAM(others)
    train(a, params, 2)
    b.load_state_dict(a.state_dict())
    want = stored(a, params)
    train(b, others, 1)
    assert_same(stored(a, params), want)


def test_a_state_of_another_model_is_refused():
    params, others = model((4, 5)), model((5, 4))
    a, b = MADAM(params), MADAM(others)
    train(a, params, 1)
    with pytest.raises(ValueError, match=r"state exp_avg of shape \(4, 5\).*shape is \(5, 4\)"):
        b.load_state_dict(a.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_live_optimizer_can_be_copied(clone):
    params = model()
    optimizer = MADAM(params, backend="cpu", form="released")
    train(optimizer, params, 2)
    twin = clone(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    assert twin.backend == "cpu" and twin._plan is None
    train(optimizer, params, 2, seed=3)
    train(twin, twins, 2, seed=3)
    assert_same(stored(twin, twins), stored(optimizer, params))


def test_masters_follow_an_outside_edit_after_resync():
    params = model(dtype=torch.bfloat16)
    optimizer = MADAM(params, master_weights=True)
    train(optimizer, params, 1)
    with torch.no_grad():
        params[0].fill_(3.0)
    optimizer.resync_master()
    assert optimizer.state[params[0]]["master_param"].eq(3.0).all()


def test_masters_gather_steps_too_small_for_bfloat16():
    (p,) = params = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    optimizer = fusedstep.AdamW(params, lr=1e-3, weight_decay=0.0, master_weights=True)
    for _ in range(20):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert float(optimizer.state[p]["master_param"][0]) == pytest.approx(0.98, abs=1e-4)
    assert p[0] == torch.tensor(0.98, dtype=torch.bfloat16)


def test_a_released_beta_prod_is_neither_read_nor_written(backend, device):
    """Once it is 0 everywhere, what lies in its memory no longer matters."""
    params = model((50,), device=device)
    optimizer = MADAM(params, beta2_range=(0.01, 0.02), backend=backend)
    train(optimizer, params, 6)
    state = optimizer.state[params[0]]
    assert float(state["beta_prod_bound"]) < 2**-25 and not state["beta_prod"].any()
    state["beta_prod"].fill_(float("nan"))
    train(optimizer, params, 1)
    assert state["beta_prod"].isnan().all() and params[0].isfinite().all()
