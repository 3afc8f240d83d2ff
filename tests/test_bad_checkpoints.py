"""What a checkpoint brings is checked before use; one that is refused changes nothing."""

import copy

import fusedstep
import pytest
import torch
from torch.optim import SGD, AdamW, NAdam

from tests.training import (
    CLASSES,
    assert_same,
    every_class,
    give_gradients,
    model,
    no_warning,
    nothing_moves,
    stored,
    train,
)


def columns(value):
    return value.ndim > 0


def numbers(value):
    return value.ndim == 0


def all_of_them(value):
    return True


# What is done to an entry of the saved state, to which entries, and what the error says.
SPOILED = {
    "cut": (lambda v: v[1:], columns, r"a tensor of shape \(3, 5\); the parameter's shape is"),
    "turned": (lambda v: v.t(), columns, r"of shape \(5, 4\); .* is \(4, 5\). Load the state of"),
    "two": (lambda v: torch.stack([v, v]), numbers, r"of shape \(2,\); it must hold one number"),
    "int64": (lambda v: v.long(), columns, "a torch.int64 tensor of layout"),
    "complex": (lambda v: v.to(torch.complex64), all_of_them, "a torch.complex64 tensor"),
    "bool": (lambda v: v.bool(), all_of_them, "a torch.bool tensor"),
    "sparse": (lambda v: v.to_sparse(), columns, "layout torch.sparse_coo; kernels take dense"),
    "meta": (lambda v: v.to("meta"), all_of_them, "on meta without memory"),
    "list": (lambda v: v.tolist(), columns, "which is not a tensor"),
    "word": (lambda v: "zero", all_of_them, "'zero', which is not a tensor"),
    "None": (lambda v: None, all_of_them, "None, which is not a tensor"),
    "nan": (lambda v: v.double() * torch.nan, numbers, "nan, which is not a"),
    "inf": (lambda v: v.double() + torch.inf, numbers, "inf, which is not a"),
}


TWINS = [("Adam", "AdamW"), ("AdamW", "Adam"), ("AvaGrad", "AvaGradW"), ("AvaGradW", "AvaGrad")]


@pytest.mark.parametrize(
    "cls, other, library",
    [(*pair, fusedstep) for pair in TWINS] + [(*pair, torch.optim) for pair in TWINS[:2]],
)
def test_the_decay_of_another_algorithm_is_refused(cls, other, library):
    """A checkpoint says whether its decay is decoupled; torch's does since 2.7."""
    params = model()
    theirs = getattr(library, other)(params, weight_decay=0.1)
    if "decoupled_weight_decay" not in theirs.defaults:
        pytest.skip("this torch does not write it")
    train(theirs, params, 1)
    optimizer = getattr(fusedstep, cls)(params)
    train(optimizer, params, 1)
    before = stored(optimizer, params)
    with pytest.raises(ValueError, match=f"decoupled_weight_decay is .*, which is {other}'s"):
        optimizer.load_state_dict(theirs.state_dict())
    assert_same(stored(optimizer, params), before)


@every_class
def test_states_of_another_kind_of_optimizer_are_told(cls):
    params = model()
    theirs = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    train(theirs, params, 1)
    with pytest.warns(UserWarning, match=f"{cls.__name__}: the loaded states hold momentum_buffer"):
        cls(params).load_state_dict(theirs.state_dict())
    with no_warning():
        optimizer = cls(params)
        optimizer.load_state_dict(cls(params).state_dict())  # none at all
        train(optimizer, params, 1)
        optimizer.state[params[0]]["note"] = 1
        cls(params).load_state_dict(optimizer.state_dict())  # and its own


@pytest.mark.parametrize("what", SPOILED)
@every_class
def test_a_spoiled_state_is_refused(cls, what):
    params = model((6,), (4, 5))
    optimizer = cls(params, master_weights=True)
    train(optimizer, params, 2)
    want, saved = stored(optimizer, params), optimizer.state_dict()
    change, those, message = SPOILED[what]
    first, last = saved["state"].values()
    for name, value in last.items():
        if not those(value):
            continue
        bad = {**saved, "state": {0: first, 1: {**last, name: change(value)}}}
        with pytest.raises(ValueError, match=message) as told:
            optimizer.load_state_dict(bad)
        assert f"{cls.__name__}, group 0, parameter 1: its state {name} is " in str(told.value)
        assert_same(stored(optimizer, params), want)


@pytest.mark.parametrize("by_hand", [False, True], ids=["loaded", "by hand"])
@every_class
def test_a_state_that_lacks_a_part_is_refused(cls, by_hand):
    params = model((6,), (4, 5))
    optimizer = cls(params, **{"momentum": 0.0} if cls is fusedstep.MADGRAD else {})
    train(optimizer, params, 2)
    saved, state = optimizer.state_dict(), optimizer.state[params[1]]
    parts = {
        rf".* without {name}: ": {key: value for key, value in state.items() if key != name}
        for name in state
    }
    for told, rest in {**parts, "step and without ": {"step": state["step"]}}.items():
        with pytest.raises(ValueError, match=rf"parameter 1 has a state with {told}"):
            if by_hand:
                optimizer.state[params[1]] = rest
                optimizer.step()
            else:
                optimizer.load_state_dict({**saved, "state": {**saved["state"], 1: rest}})
        optimizer.state[params[1]] = state


def test_a_state_of_another_algorithm_is_refused():
    params = model()
    theirs = torch.optim.Adamax(params)
    train(theirs, params, 1)
    with pytest.raises(ValueError, match="without exp_avg_sq"):
        fusedstep.AdamW(params).load_state_dict(theirs.state_dict())


@every_class
def test_what_another_algorithm_saved_is_refused(cls):
    """Its states may have the names, shapes and dtypes of one's own."""
    params = model()
    optimizer = cls(params)
    train(optimizer, params, 1)
    before = [dict(optimizer.state[p]) for p in params]
    for other in CLASSES:
        if other.rule == cls.rule:
            continue
        theirs = other(params, lr=0.5)
        train(theirs, params, 1)
        with pytest.raises(ValueError, match=f"'{other.rule}' wrote the checkpoint"):
            optimizer.load_state_dict(theirs.state_dict())
        assert optimizer.param_groups[0]["lr"] != 0.5
        assert before == [dict(optimizer.state[p]) for p in params]


@every_class
def test_a_group_that_optimizers_share_is_each_ones_own(cls):
    params = model()
    first = fusedstep.LAMB(params)
    train(first, params, 1)
    second = cls([{"params": params, "algorithm": "lamb"}])
    second.param_groups[0].update(first.param_groups[0], lr=0.01)
    second = cls(second.param_groups)
    with pytest.raises(ValueError, match="momentum is 5"):
        fusedstep.MADGRAD(first.param_groups, momentum=5.0)
    train(second, params, 1)
    fusedstep.LAMB(params).load_state_dict(first.state_dict())
    cls(params).load_state_dict(second.state_dict())


@every_class
def test_what_others_saved_is_taken_with_a_warning_where_it_may_mean_something_else(cls):
    params = model()
    optimizer = cls(params)
    for theirs in [kind(params, lr=0.1) for kind in (SGD, AdamW, NAdam)]:
        state = theirs.state_dict()
        for group in state["param_groups"]:  # else the two decays are told apart
            group.pop("decoupled_weight_decay", None)
        if optimizer.like_torchs and type(theirs) is AdamW:
            with no_warning():
                optimizer.load_state_dict(state)
        else:
            with pytest.warns(UserWarning, match="another kind of optimizer wrote the checkpoint"):
                optimizer.load_state_dict(state)


def test_masters_that_are_left_out_are_told():
    params = [torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))]
    params[0].grad = torch.ones_like(params[0])
    first = fusedstep.AdamW(params, master_weights=True)
    first.step()
    second = fusedstep.AdamW(params)
    with pytest.warns(UserWarning, match="float32 masters .master_param. are left out") as told:
        second.load_state_dict(first.state_dict())
    assert told[0].filename == __file__ and "master_param" not in second.state[params[0]]
    with no_warning():
        fusedstep.AdamW([torch.nn.Parameter(torch.zeros(3))]).load_state_dict(first.state_dict())
    second.master_weights = True
    second.load_state_dict(first.state_dict())  # the remedy, without a warning
    assert torch.equal(
        second.state[params[0]]["master_param"], first.state[params[0]]["master_param"]
    )


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if "amsgrad" in cls.constants])
def test_amsgrad_and_masters_may_begin_later(cls):
    params = model(dtype=torch.bfloat16)
    optimizer = cls(params)
    train(optimizer, params, 2)
    later = cls(params, amsgrad=True, master_weights=True)
    later.load_state_dict(optimizer.state_dict())
    later.param_groups[0]["amsgrad"] = True
    train(later, params, 1)
    added = later.state[params[0]].keys() - optimizer.state[params[0]].keys()
    assert added == {"max_exp_avg_sq", "master_param"}


@pytest.mark.parametrize("count", [-1.0, 0.5, 2.0**60, float("nan")])
def test_a_count_that_counts_nothing_is_refused(count):
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = torch.tensor(count)
    told = "its state step is .*, which is not a number of steps"
    with pytest.raises(ValueError, match=told):
        optimizer.load_state_dict(saved)
    optimizer.state[params[0]]["step"] = torch.tensor(count)  # by hand
    before = stored(optimizer, params)
    with pytest.raises(ValueError, match=told):
        train(optimizer, params, 1)
    assert_same(stored(optimizer, params), before)


def test_a_state_that_is_no_dict_is_refused():
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    saved = optimizer.state_dict()
    saved["state"][1] = [torch.zeros(6)]
    with pytest.raises(ValueError, match="parameter 1: its state is .*, a list; a state is a dict"):
        optimizer.load_state_dict(saved)


SUMS = [torch.zeros(1), torch.zeros(3), torch.zeros(2).long(), torch.zeros(2, device="meta"), 0.0]


@pytest.mark.parametrize("sums", SUMS, ids=str)
def test_sums_in_a_group_are_checked_before_the_kernel_writes_them(sums):
    params = model()
    optimizer = fusedstep.AvaGrad(params, form="released")
    train(optimizer, params, 2)
    want, saved = stored(optimizer, params), optimizer.state_dict()
    saved["param_groups"][0]["eta_sq_sum"] = sums
    told = "group 0: eta_sq_sum is .* keeps two numbers there"
    with pytest.raises(ValueError, match=told):
        optimizer.load_state_dict(saved)
    assert_same(stored(optimizer, params), want)
    optimizer.param_groups[0]["eta_sq_sum"] = sums
    give_gradients(params)
    with pytest.raises(ValueError, match=told):
        optimizer.step()
    del optimizer.param_groups[0]["eta_sq_sum"], want["group 0 eta_sq_sum"]
    assert_same(stored(optimizer, params), want)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("lr, told", [(-1.0, "lr is -1.0"), ("1e-3", "lr is '1e-3', a str")])
def test_a_rate_from_a_checkpoint_is_checked_before_anything_is_loaded(lr, told, capturable):
    params = model()
    optimizer = fusedstep.MAdam(params, capturable=capturable)
    saved = optimizer.state_dict()
    train(optimizer, params, 1)
    want, groups = stored(optimizer, params), copy.deepcopy(optimizer.param_groups)
    saved["param_groups"] = [{**saved["param_groups"][0], "lr": lr}]
    with pytest.raises((ValueError, TypeError), match=f"group 0: {told}"):
        optimizer.load_state_dict(saved)
    assert_same(stored(optimizer, params), want)
    assert str(optimizer.param_groups) == str(groups)


@pytest.mark.parametrize("name", ["step", "exp_avg_sq", "lr_ema"])
def test_a_state_that_lost_its_memory_is_refused(name):
    params = model()
    optimizer = fusedstep.LaProp(params)
    train(optimizer, params, 2)
    optimizer.state[params[0]][name].untyped_storage().resize_(0)
    message = f"parameter 0: its state {name} is .* without memory"
    with nothing_moves(params), pytest.raises(ValueError, match=message):
        optimizer.step()
