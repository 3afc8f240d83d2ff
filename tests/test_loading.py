"""What is loaded: each state in its own way, and nothing of the checkpoint is kept."""

import copy
import gc
import weakref

import fusedstep
import pytest
import torch

from tests.training import assert_same, model, no_warning, stored, train


def test_groups_and_dtypes_are_loaded_each_in_its_own_way():
    found = []
    for loaded in (False, True):
        params = [*model(dtype=torch.bfloat16), *model(dtype=torch.float64)]
        groups = [{"params": params}, {"params": model(seed=1), "amsgrad": True}]
        optimizer = fusedstep.AdamW(groups, master_weights=True)
        params = params + groups[1]["params"]
        train(optimizer, params, 2)
        if loaded:
            optimizer.load_state_dict(optimizer.state_dict())
        found.append(stored(optimizer, params))
    assert_same(*found)


@pytest.mark.parametrize("bad", [False, True])
def test_what_was_loaded_is_not_kept_alive(bad):
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    if bad:
        saved["state"][2]["step"] = torch.tensor(0.5)
    held = weakref.ref(saved["state"][0]["exp_avg"])
    try:
        optimizer.load_state_dict(saved)
    except ValueError:
        assert bad
    del saved
    gc.collect()
    assert held() is None


def test_what_a_hook_made_of_a_checkpoint_is_judged_and_not_what_it_was_given():
    params = model()
    optimizer, theirs = fusedstep.AdamW(params), torch.optim.SGD(params, lr=0.1)
    ours = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(lambda *_: ours)
    with no_warning():
        optimizer.load_state_dict(theirs.state_dict())


def test_an_interrupt_while_one_is_loaded_loses_nothing_of_the_next(monkeypatch):
    """Neither states nor a warning, if it comes before what the first one set up is taken down."""
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    first = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, 1)
    saved, before = copy.deepcopy(optimizer.state_dict()), stored(optimizer, params)

    def stops(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.utils.hooks.RemovableHandle, "remove", stops)
        with pytest.raises(KeyboardInterrupt):
            optimizer.load_state_dict(first)
    optimizer.param_groups[0]["max_grad_norm"] = 2.5
    with pytest.warns(UserWarning, match="max_grad_norm was 2.5"):
        optimizer.load_state_dict(saved)
    assert_same(stored(optimizer, params), before)


def test_a_checkpoint_that_switches_clipping_off_is_told():
    params = model()
    saved = fusedstep.AdamW(params).state_dict()
    clipped = fusedstep.AdamW(params, max_grad_norm=2.5)
    with pytest.warns(UserWarning, match="max_grad_norm was 2.5, and is None after loading"):
        clipped.load_state_dict(saved)
    with no_warning():
        clipped.load_state_dict(saved)
        fusedstep.AdamW(params, max_grad_norm=2.5).load_state_dict(
            fusedstep.AdamW(params, max_grad_norm=1.0).state_dict()
        )


def test_what_a_hook_makes_of_a_state_dict_is_its_own():
    optimizer = fusedstep.AdamW(model())
    optimizer.register_state_dict_post_hook(lambda _, saved: {"optimizer": saved})
    for _ in range(2):
        (saved,) = optimizer.state_dict().values()
        assert [group["algorithm"] for group in saved["param_groups"]] == ["adamw"]


def test_a_state_of_another_momentum_is_refused_before_anything_is_loaded():
    params = model()
    with_x0, without = fusedstep.MADGRAD(params), fusedstep.MADGRAD(params, momentum=0.0)
    train(with_x0, params, 1)
    train(without, params, 1)
    before = stored(with_x0, params)
    with pytest.raises(ValueError, match="momentum is 0.9, but .* Give the group that momentum"):
        with_x0.load_state_dict({**with_x0.state_dict(), "state": without.state_dict()["state"]})
    assert_same(stored(with_x0, params), before)


def test_a_hook_may_add_a_group_to_load_into():
    first, *others = model()
    saved = fusedstep.AdamW([{"params": [first]}, {"params": others}]).state_dict()
    optimizer = fusedstep.AdamW([first], max_grad_norm=1.0)
    del optimizer.param_groups[0]["max_grad_norm"]
    optimizer.register_load_state_dict_pre_hook(
        lambda optimizer, _: optimizer.add_param_group({"params": others})
    )
    with pytest.warns(UserWarning, match="max_grad_norm was 1.0, and is None after") as told:
        optimizer.load_state_dict(saved)
    assert len(told) == 1 and len(optimizer.param_groups) == 2


def test_a_hook_may_ask_for_another_state_dict():
    optimizer, found = fusedstep.AdamW(model()), []

    def ask(optimizer, saved):
        if not found:
            found.append(saved)
            found.append(optimizer.state_dict())

    for hook in (ask, lambda *_: None):
        optimizer.register_state_dict_post_hook(hook)
    assert optimizer.state_dict() == found[1]


def test_a_count_may_be_an_int32():
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 3)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = state["step"].int()
    optimizer.load_state_dict(saved)
    train(optimizer, params, 1)
    assert optimizer.state[params[0]]["step"].dtype is torch.int64
    assert optimizer.state[params[0]]["step"] == 4
