"""What a step looks at by identity, natively and in Python."""

import pytest
import torch
from fusedstep import watch


@pytest.fixture(params=["native", "python"])
def either_watch(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(watch, "native", lambda: None)


CHANGES = {
    "a number": lambda tree: tree[0].update(lr=1.5),
    "a number in a tuple": lambda tree: tree[0].update(betas=(0.5, 0.75)),
    "a number in a list": lambda tree: tree[1]["betas"].__setitem__(1, 0.5),
    "a new entry": lambda tree: tree[1].update(new=1),
    "an entry less": lambda tree: tree[1].pop("lr"),
    "an order": lambda tree: tree.reverse(),
    "a list less": lambda tree: tree.pop(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_watch_sees_what_changes_at_any_depth(change, either_watch):
    tree = [
        {"params": [object()], "lr": 0.5, "betas": (0.5, 0.25)},
        {"params": [object(), object()], "lr": 0.5, "betas": [0.5, 0.25]},
    ]
    seen = watch.Watch(tree, without="params")
    tree[0]["params"] = []
    assert seen.holds(tree), "what is left out may change"
    assert seen.holds([dict(group) for group in tree]) is False
    change(tree)
    assert not seen.holds(tree)


def test_a_watch_compares_no_tensors(either_watch):
    key, value = torch.ones(3), torch.ones(3)
    seen = watch.Watch({key: {"exp_avg": value}})
    assert not seen.holds({key: {"exp_avg": value}})
    inner = {"exp_avg": value}
    seen = watch.Watch({key: inner})
    assert seen.holds({key: inner})
    inner["exp_avg"] = torch.ones(3)
    assert not seen.holds({key: inner})
