"""What a step looks at by identity, natively and in Python."""

import gc
import weakref
from collections import OrderedDict

import fusedstep
import pytest
import torch
from fusedstep import watch
from fusedstep.backends import CpuBackend

from tests.training import every_class, model, train


def exchange_names(group):
    """Exchange the names of the first and last entry; the values stay in their order."""
    values, (first, *names, last) = list(group.values()), group
    group.clear()
    group.update(zip((last, *names, first), values, strict=True))


CHANGES = {
    "the names of two numbers": lambda tree: exchange_names(tree[2]),
    "a number": lambda tree: tree[0].update(lr=1.5),
    "a number in a tuple": lambda tree: tree[0].update(betas=(0.5, 0.75)),
    "a number in a list": lambda tree: tree[1]["betas"].__setitem__(1, 0.5),
    "a new entry": lambda tree: tree[1].update(new=1),
    "an entry less": lambda tree: tree[1].pop("lr"),
    "an order": lambda tree: tree.reverse(),
    "a list less": lambda tree: tree.pop(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_watch_sees_what_changes_at_any_depth(change, native_or_python):
    class Pair(list):
        """A list of a type of its own."""

    tree = [
        {"params": [object()], "lr": 0.5, "betas": (0.5, 0.25)},
        {"".join("params"): [object(), object()], "lr": 0.5, "betas": Pair([0.5, 0.25])},  # loaded
        {"lr": 0.5, "betas": (0.5, 0.25), 7: "seven", "weight_decay": 0.25},
    ]
    seen = watch.Watch(tree, without=("params",))
    tree[0]["params"] = tree[1]["params"] = []
    assert seen.holds(tree), "what is left out may change"
    assert seen.holds([dict(group) for group in tree]) is False
    change(tree)
    assert not seen.holds(tree)


def test_a_watch_compares_no_tensors(native_or_python):
    key, value = torch.ones(3), torch.ones(3)
    seen = watch.Watch({key: {"exp_avg": value}})
    assert not seen.holds({key: {"exp_avg": value}})
    inner = {"exp_avg": value}
    seen = watch.Watch({key: inner})
    assert seen.holds({key: inner})
    inner["exp_avg"] = torch.ones(3)
    assert not seen.holds({key: inner})


def test_others_notes_in_states_end_no_plan(native_or_python):
    """Such as the perturbation that sharpness-aware minimisation keeps there, new in each step."""
    params, others = model(), model()
    optimizer, twin = fusedstep.MAdam(params), fusedstep.MAdam(others)
    train(optimizer, params, 1)
    for p in params:
        optimizer.state[p]["note"] = torch.zeros(())
    train(optimizer, params, 1)
    plan = optimizer._plan
    for t in range(3):
        optimizer.state["runs"] = t
        for p in params:
            optimizer.state[p]["note"] = {"step": torch.full((), float(t))}
        train(optimizer, params, 1)
        assert optimizer._plan is plan
    for _ in range(5):
        train(twin, others, 1)
    assert all(map(torch.equal, params, others))


def test_a_watch_looks_into_dicts_of_a_kind_of_their_own(native_or_python):
    tree = [OrderedDict(lr=0.5)]
    seen = watch.Watch(tree)
    assert seen.holds(tree)
    tree[0]["lr"] = 1.5
    assert not seen.holds(tree)


def test_an_order_of_its_own_is_no_change(native_or_python):
    ordered = OrderedDict(a=1.0, b=2.0)
    ordered.move_to_end("a")
    assert watch.Watch([ordered]).holds([ordered])
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    state = optimizer.state[params[0]] = OrderedDict(optimizer.state[params[0]])
    state.move_to_end("step")
    train(optimizer, params, 2)
    assert int(state["step"]) == 3


def test_exchanged_states_are_used(native_or_python):
    params = model((3,), (3,))
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    first, second = (optimizer.state[p] for p in params)
    second["step"].fill_(7)
    optimizer.state.clear()
    optimizer.state.update({params[1]: first, params[0]: second})
    params[1].grad = None
    optimizer.step()
    assert int(first["step"]) == 1 and int(second["step"]) == 8


def test_exchanged_names_of_states_are_followed(native_or_python):
    (p,) = params = model((3,))
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    state, g = optimizer.state[p], p.grad.clone()
    step, first, second = state.values()
    state.clear()
    state.update(step=step, exp_avg_sq=first, exp_avg=second)
    want = second.lerp(g, 0.1)
    optimizer.step()
    torch.testing.assert_close(second, want)


def test_what_is_watched_is_collected_with_its_optimizer():
    params = model()
    optimizer = fusedstep.AdamW(params)
    optimizer.param_groups[0]["owners"] = [optimizer]
    train(optimizer, params, 2)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


def test_a_tree_without_an_end_is_an_error(native_or_python):
    tree = []
    tree.append(tree)
    with pytest.raises(RecursionError):
        watch.Watch(tree)


@pytest.mark.parametrize("form", ["paper", "released"])
@every_class
def test_a_plan_keeps_no_state_alive(cls, form):
    """Offloading states frees their memory at once, not only in the next step."""

    def stepped():
        params = model(dtype=torch.bfloat16)
        optimizer = cls(params, form=form, master_weights=True, max_grad_norm=1.0)
        train(optimizer, params, 2)
        return optimizer, params

    def alive(optimizer):
        return [weakref.ref(t) for state in optimizer.state.values() for t in state.values()]

    (a, params), (b, others) = stepped(), stepped()
    old = alive(a)
    for p in params:
        a.state[p] = {name: t.clone() for name, t in a.state[p].items()}
    assert old and not any(ref() is not None for ref in old)
    a.step()
    b.step()
    assert all(map(torch.equal, params, others))
    old = alive(a)
    a.state.clear()
    assert old and not any(ref() is not None for ref in old)


def test_a_state_in_the_place_of_one_that_is_gone_is_no_old_one():
    """Python gives a new object the identity of one that has died."""
    params = model((3,), (3,), (3,))
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 2)
    state, before = optimizer.state[params[1]], optimizer._plan
    old, values = id(state["exp_avg"]), torch.ones(3)
    state["exp_avg"], made = None, []
    while len(made) < 100 and old not in map(id, made):
        made.append(torch.empty(3))
    assert id(made[-1]) == old, "nothing is shown"
    state["exp_avg"] = made[-1].copy_(values)
    train(optimizer, params, 1)
    assert optimizer._plan is not before and not torch.equal(state["exp_avg"], values)


@pytest.mark.parametrize("convert", ["to", "load"])
def test_torch_may_swap_parameters_after_a_step(convert):
    """As it does with those of FSDP2; it swaps none that has a weak reference."""
    layer = torch.nn.Linear(4, 4)
    optimizer = fusedstep.AdamW(layer.parameters())
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        if convert == "to":
            layer.to(torch.float64)
        else:
            layer.load_state_dict(layer.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    layer(torch.ones(2, 4, dtype=layer.weight.dtype)).sum().backward()
    optimizer.step()
    assert optimizer.state[layer.weight]["step"] == 2


def test_states_live_as_long_as_the_step_that_made_them(monkeypatch):
    """Another thread that takes its first step meanwhile makes its own, and the last ones stay."""
    params, alive = model(), []
    optimizer = fusedstep.AdamW(params)
    apply = CpuBackend.apply

    def another_steps(backend, launch, work):
        held = [weakref.ref(t) for state in optimizer.state.values() for t in state.values()]
        monkeypatch.setattr(CpuBackend, "apply", apply)
        optimizer.state.clear()
        optimizer.step()
        apply(backend, launch, work)
        alive.extend(ref() is not None for ref in held)

    monkeypatch.setattr(CpuBackend, "apply", another_steps)
    train(optimizer, params, 1)
    assert len(alive) == 3 * len(params) and all(alive)
    train(optimizer, params, 1)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2] * len(params)


def test_gradients_live_as_long_as_a_kernel_reads_them(monkeypatch):
    """Another thread may drop them meanwhile."""
    params, alive = model(), []
    optimizer = fusedstep.AdamW(params)
    apply = CpuBackend.apply

    def drops_them(backend, launch, work):
        held = [weakref.ref(p.grad) for p in params]
        optimizer.zero_grad()
        alive.extend(ref() is not None for ref in held)
        apply(backend, launch, work)
        alive.extend(ref() is not None for ref in held)
        freed.extend(held)

    monkeypatch.setattr(CpuBackend, "apply", drops_them)
    for _ in range(2):
        freed = []
        train(optimizer, params, 1)
        assert all(ref() is None for ref in freed)
    assert len(alive) == 4 * len(params) and all(alive)
