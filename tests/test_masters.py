"""float32 masters of 16-bit parameters: where they come from, and what edits do to them."""

import copy
from contextlib import nullcontext

import fusedstep
import pytest
import torch
from fusedstep import keeps_state
from torch.distributed.tensor import Shard

from tests.distributed import parts
from tests.training import every_class, give_gradients, model, no_warning, train


@every_class
def test_a_master_may_be_given_before_the_first_step(cls):
    """Such as float32 weights that the 16-bit ones were rounded from: the step updates those."""
    wide, narrow = model(), model(dtype=torch.bfloat16)
    a, b = cls(wide), cls(narrow, master_weights=True)
    for p, q in zip(wide, narrow, strict=True):
        b.state[q]["master_param"] = p.detach().clone()
    for t in range(3):
        give_gradients(narrow, t)
        for p, q in zip(wide, narrow, strict=True):
            p.grad = q.grad.float()
        a.step()
        b.step()
    for p, q in zip(wide, narrow, strict=True):
        assert torch.equal(b.state[q]["master_param"], p) and torch.equal(p.bfloat16(), q)
        for name, value in a.state[p].items():
            assert torch.equal(b.state[q][name], value)


def load_threes(params):
    for p in params:
        torch.nn.init.constant_(p, 3.0)


@pytest.mark.parametrize("which", [slice(None), slice(1), slice(1, 2), slice(-1, None)], ids=str)
def test_an_edit_that_a_master_undoes_is_told(which, native_or_python):
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    train(optimizer, params, 2)
    load_threes(params[which])
    with pytest.warns(UserWarning, match="AdamW: .* call `optimizer.resync_master") as told:
        train(optimizer, params, 1)
    assert told[0].filename == train.__code__.co_filename, "who called step is named"
    assert not any(p.eq(3.0).any() for p in params[which])
    with no_warning():
        train(optimizer, params, 1)
        load_threes(params)
        optimizer.resync_master()
        train(optimizer, params, 1)


def test_a_warning_names_who_called_step_through_others_wrappers():
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    optimizer.register_step_pre_hook(lambda *_: None)
    train(optimizer, params, 1)
    load_threes(params)
    give_gradients(params)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.warns(UserWarning, match="resync_master") as told:
        scaler.step(optimizer)
    assert told[0].filename == __file__


def reload(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def add_a_group(optimizer, params):
    optimizer.add_param_group({"params": model((2,), dtype=torch.bfloat16)})


def clip(optimizer, params):
    optimizer.param_groups[0]["max_grad_norm"] = 1.0


def replace_data(optimizer, params):
    for p in params:
        p.data = p.detach().clone()


@pytest.mark.parametrize("change", [reload, add_a_group, clip, replace_data])
@pytest.mark.parametrize("first", ["edit", "change"])
def test_an_edit_is_told_where_the_step_is_planned_anew(change, first):
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    train(optimizer, params, 2)
    with no_warning():
        change(optimizer, params)
        train(optimizer, params, 1)
        if change is clip:
            optimizer.param_groups[0]["max_grad_norm"] = None
    if first == "change":
        change(optimizer, params)
    load_threes(params)
    if first == "edit":
        change(optimizer, params)
    with pytest.warns(UserWarning, match="edited or loaded since .* call `optimizer.resync_master"):
        train(optimizer, params, 1)


def test_ordinary_steps_compare_no_masters(monkeypatch):
    """That waits for the device. Steps under a mode that has torch write, too, count otherwise."""
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    for mode in (nullcontext, torch.autograd.graph.allow_mutation_on_saved_tensors, nullcontext):
        with mode(), monkeypatch.context() as patched:
            train(optimizer, params, 2)
            patched.setattr(keeps_state, "_different", lambda _: pytest.fail("compared"))
            train(optimizer, params, 2)


def test_parameters_that_became_nan_are_no_edit():
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    train(optimizer, params, 1)
    params[0].grad.fill_(float("nan"))
    with no_warning():
        optimizer.step()
        assert params[0].isnan().all()
        reload(optimizer, params)
        optimizer.step()


def lose_memory(t, how):
    if how == "freed":
        t.data = torch.empty(0, dtype=t.dtype)
    else:
        t.untyped_storage().resize_(0)


@pytest.mark.parametrize("how", ["freed", "emptied"])
def test_a_master_that_nobody_reads_may_be_away(how):
    params = model((4, 3), (3,), (2,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    train(optimizer, params, 1)
    frozen, master = params[1], optimizer.state[params[1]]["master_param"]
    frozen.grad = None
    lose_memory(master, how)
    with torch.no_grad():
        params[2].copy_(params[2].clone())  # others are looked at
    with no_warning():
        optimizer.step()
        optimizer.resync_master()


@pytest.mark.parametrize("how", ["freed", "emptied"])
def test_a_resync_leaves_what_lost_its_memory(how):
    lost, other = params = model((4, 3), (2,), dtype=torch.bfloat16)
    optimizer = fusedstep.MAdam(params, master_weights=True)
    train(optimizer, params, 1)
    before = optimizer.state[lost]["master_param"].clone()
    lose_memory(lost, how)
    optimizer.zero_grad()
    other.data.fill_(0.5)
    optimizer.resync_master()
    master = optimizer.state[other]["master_param"]
    assert (master == 0.5).all() and not master.requires_grad
    assert torch.equal(optimizer.state[lost]["master_param"], before)


def test_a_warning_that_is_an_error_is_one_again():
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    train(optimizer, params, 1)
    load_threes(params)
    for _ in range(2):
        with no_warning(), pytest.raises(UserWarning, match="resync_master"):
            optimizer.step()
    assert all(p.eq(3.0).all() for p in params)


def test_masters_are_compared_only_where_somebody_wrote(monkeypatch):
    """A comparison waits for the device."""
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    plain = fusedstep.AdamW(wide := model(), master_weights=True)
    train(optimizer, params, 1)
    monkeypatch.setattr(fusedstep.AdamW, "_warn_of_edits", None)
    for _ in range(2):
        train(optimizer, params, 2)
        optimizer.zero_grad()
        load_threes(params)
        optimizer.resync_master()
        train(plain, wide, 1)
        load_threes(wide)  # they have no masters
    with pytest.raises(TypeError):
        load_threes(params)
        train(optimizer, params, 1)


def test_what_a_step_does_not_undo_is_not_told():
    params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    plain = fusedstep.AdamW(wide := model())
    with no_warning():
        for each, its in ((optimizer, params), (plain, wide)):
            train(each, its, 2)
        load_threes(wide)  # they have no masters
        train(plain, wide, 1)
        kept = [p.detach().clone() for p in params]
        load_threes(params)
        with torch.no_grad():  # as after evaluating averaged weights
            torch._foreach_copy_(params, kept)
        train(optimizer, params, 1)
        load_threes(params[-1:])
        give_gradients(params)
        params[-1].grad = None  # for now
        optimizer.step()
    assert params[-1].eq(3.0).all()
    with pytest.warns(UserWarning, match="resync_master"):
        train(optimizer, params, 1)
    with no_warning():
        train(optimizer, params, 1)
        load_threes(params[-1:])
        params[-1].grad = None
        optimizer.step()
        with torch.no_grad():  # and put back
            params[-1].copy_(optimizer.state[params[-1]]["master_param"])
        train(optimizer, params, 2)


def test_masters_of_inference_tensors():
    with torch.inference_mode():
        params = model(dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    with torch.inference_mode():
        train(optimizer, params, 2)
    assert optimizer.state[params[0]]["step"] == 2


def test_a_given_master_keeps_no_graph_and_stays_its_givers():
    (p,) = model((5,), dtype=torch.bfloat16)
    weight = torch.nn.Parameter(torch.ones(5))
    for given in (weight, weight.clone()):
        optimizer = fusedstep.MADGRAD([p], master_weights=True)
        optimizer.state[p]["master_param"] = given
        train(optimizer, [p], 1)
        held = optimizer.state[p]
        assert not held["master_param"].requires_grad and not held["x0"].requires_grad
        assert weight.eq(1.0).all() and held["x0"].eq(1.0).all()
        copy.deepcopy(optimizer.state_dict())


def test_a_master_that_is_not_wanted_is_no_beginning():
    (p,) = model((5,), dtype=torch.bfloat16)
    before, optimizer = p.detach().float(), fusedstep.MADGRAD([p])
    optimizer.state[p]["master_param"] = torch.full((5,), 9.0)
    train(optimizer, [p], 1)
    held = optimizer.state[p]
    assert torch.equal(held["x0"], before) and "master_param" not in held


def test_given_masters_are_saved_before_a_first_step():
    (p,) = model((5,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW([p], master_weights=True)
    optimizer.state[p]["master_param"] = torch.nn.Parameter(torch.full((5,), 9.0))
    with no_warning():  # they are no edit
        optimizer.load_state_dict(optimizer.state_dict())
        assert not optimizer.state[p]["master_param"].requires_grad
        train(optimizer, [p], 1)
    assert optimizer.state[p]["master_param"].sub(9.0).abs().max() < 0.1


def test_an_edit_of_a_part_is_told(alone):
    _, params = parts(alone, ((4,), [Shard(0)]), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, master_weights=True)
    with no_warning():
        optimizer.step()
        optimizer.step()
    for write in (lambda p: p.zero_(), lambda p: p.to_local().zero_()):
        with torch.no_grad():
            write(params[0])
        with pytest.warns(UserWarning, match="resync_master"):
            optimizer.step()


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_masters_that_were_not_used_for_a_while_do_not_come_back():
    (p,) = params = model((5,), dtype=torch.bfloat16)
    optimizer = fusedstep.AdamW(params, lr=0.5, master_weights=True)
    train(optimizer, params, 1)
    for masters, steps in ((False, 10), (True, 0)):
        saved = optimizer.state_dict()
        optimizer = fusedstep.AdamW(params, lr=0.5, master_weights=masters)
        optimizer.load_state_dict(saved)
        train(optimizer, params, steps)
        assert ("master_param" in optimizer.state[p]) is False
    before = p.detach().clone()
    train(optimizer, params, 1)
    assert (optimizer.state[p]["master_param"] - before).abs().max() < 1.0
