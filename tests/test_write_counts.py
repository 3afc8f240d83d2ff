"""What torch counts of writes into tensors: autograd sees our steps, and AvaGrad others' writes."""

import copy

import fusedstep
import pytest
import torch
from fusedstep import write_counts
from fusedstep.shards import local
from torch.distributed.tensor import DTensor, Shard

from tests.distributed import distribute, gathered, give_parts, parts
from tests.training import (
    assert_same,
    every_class,
    give_gradients,
    model,
    on_every_backend,
    stored,
    train,
)


@on_every_backend
def test_backward_through_what_a_step_changed_is_an_error(cls, backend, device):
    """A loss from before the step would be differentiated at the weights after it."""
    params = model(device=device)
    optimizer = cls(params, backend=backend)
    for _ in range(2):
        loss = sum(p.square().sum() for p in params)
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backward_may_be_allowed_to_go_on_from_copies(backend):
    """Which torch makes as soon as an operation is about to write."""
    (p,) = params = model((4,))
    optimizer = fusedstep.AdamW(params, backend=backend)
    for _ in range(2):
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            loss, want = p.pow(3).sum(), 3 * p.detach().square()
            train(optimizer, params, 1)
            p.grad = None
            loss.backward()
        assert torch.equal(p.grad, want)


def test_inference_tensors_are_stepped_beside_such_copies():
    """Operations may not write into them here, and autograd saves none."""
    with torch.inference_mode():
        (p,) = params = model((4,))
    optimizer = fusedstep.AdamW(params)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        train(optimizer, params, 2)
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("older_torch", [False, True])
def test_what_has_no_gradient_is_not_counted(older_torch, monkeypatch):
    if older_torch:
        count = write_counts.increment_version

        def one(tensor):
            if not isinstance(tensor, torch.Tensor):
                raise RuntimeError("increment_version expects a tensor")
            count(tensor)

        monkeypatch.setattr(write_counts, "increment_version", one)
    *moved, kept = params = model((3,), (2,), (4,))
    optimizer = fusedstep.MAdam(params)
    train(optimizer, params, 1)
    kept.grad = None
    before = [p._version for p in params]
    optimizer.step()
    assert all(p._version > count for p, count in zip(moved, before))
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        optimizer.step()
    assert kept._version == before[-1]


def test_a_distributed_tensor_is_counted_whole_and_in_part(alone):
    _, params = parts(alone, ((4,), [Shard(0)]), ((3,), None))
    p, _ = params
    before = [t._version for t in (*params, local(p))]
    fusedstep.AdamW(params).step()
    assert [t._version for t in (*params, local(p))] == [count + 1 for count in before]


@pytest.mark.parametrize("form", ["paper", "released"])
@every_class
def test_states_restored_in_place_are_taken_up(cls, form):
    """As torch.distributed.checkpoint loads them; AvaGrad keeps sums of its second moment."""
    found = []
    for in_place in (False, True):
        params = model()
        optimizer = cls(params, form=form)
        train(optimizer, params, 5)
        values = [p.detach().clone() for p in params]
        saved = copy.deepcopy(optimizer.state_dict())
        for p in params:
            p.grad = torch.full_like(p, 100.0)
        optimizer.step()
        with torch.no_grad():
            for p, value in zip(params, values, strict=True):
                p.copy_(value)
            if in_place:
                for p, state in zip(params, saved["state"].values(), strict=True):
                    for name, value in state.items():
                        optimizer.state[p][name].copy_(value)
                for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                    if "eta_sq_sum" in old:
                        group["eta_sq_sum"].copy_(old["eta_sq_sum"])
            else:
                optimizer.load_state_dict(saved)
        train(optimizer, params, 2, seed=9)
        found.append(stored(optimizer, params))
    assert_same(*found)


def test_writes_into_the_part_of_a_distributed_state_are_taken_up(alone):
    found = []
    for layout in (None, [Shard(0)]):
        whole = model((4,))
        (p,) = params = distribute(whole, alone, [layout])
        optimizer = fusedstep.AvaGrad(params)
        for t in range(3):
            give_gradients(whole, seed=t)
            give_parts(params, whole)
            if t == 2:
                local(optimizer.state[p]["exp_avg_sq"]).mul_(4.0)
            optimizer.step()
        found.append(gathered(optimizer, params))
    assert_same(*found)


def test_a_part_of_a_state_that_is_gone_is_not_written(alone):
    whole, params = parts(alone, ((4,), [Shard(0)]))
    (p,) = params
    optimizer, of = fusedstep.AdamW(params), fusedstep.AdamW(whole)
    for t in range(3):
        if t == 2:
            state = optimizer.state[p]["exp_avg"]
            state._local_tensor = state._local_tensor.clone()
            assert optimizer._plan.gatherer._lost, "it is not looked at"
        optimizer.step()
        of.step()
    assert_same(gathered(optimizer, params), stored(of, whole))


def test_a_part_that_was_made_under_inference_mode_has_no_count(alone):
    _, params = parts(alone, ((4,), [Shard(0)]))
    (p,) = params
    optimizer = fusedstep.AvaGrad(params)
    optimizer.step()
    with torch.inference_mode():
        loaded = torch.ones(4)
    optimizer.state[p]["exp_avg_sq"] = DTensor.from_local(loaded, alone, [Shard(0)])
    for _ in range(2):
        optimizer.step()
    assert int(optimizer.state[p]["step"]) == 3


def test_writes_that_torch_does_not_count_are_taken_up_by_loading():
    found = []
    for counted in (True, False):
        params = model()
        optimizer = fusedstep.AvaGrad(params)
        train(optimizer, params, 3)
        for p in params:
            state = optimizer.state[p]["exp_avg_sq"]
            (state if counted else state.data).mul_(4.0)
        if not counted:
            optimizer.load_state_dict(optimizer.state_dict())
        train(optimizer, params, 1)
        found.append(stored(optimizer, params))
    assert_same(*found)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_class
@pytest.mark.parametrize("loads", [False, True], ids=["steps", "loads"])
def test_what_is_done_under_inference_mode_is_as_elsewhere(cls, loads, backend):
    """Tensors that are made there have no counts of writes, and torch writes none elsewhere."""
    found = []
    for inference in (True, False):
        params = model()
        optimizer = cls(params, max_grad_norm=1.0, backend=backend)
        if loads:
            train(optimizer, params, 1)
        with torch.inference_mode(inference):
            if loads:
                optimizer.load_state_dict(optimizer.state_dict())
            else:
                train(optimizer, params, 2)
        train(optimizer, params, 2, seed=1)
        made = [t for p in params for t in optimizer.state[p].values()]
        assert loads or not any(map(torch.is_inference, made))
        with torch.inference_mode(inference):
            for p in params:
                columns = [t for t in optimizer.state[p].values() if t.shape == p.shape]
                columns[:2][-1].mul_(4.0)
        train(optimizer, params, 1, seed=2)
        found.append(stored(optimizer, params))
    assert_same(*found)
