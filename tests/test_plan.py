"""Tables and launches, without running a kernel where none is needed."""

import fusedstep
import pytest
import torch
from fusedstep import gather, native, testing
from fusedstep.backends import BACKENDS

from tests.training import assert_same, every_class, model, name_of, stored, train


def params(*shapes, **kwargs):
    result = [torch.nn.Parameter(torch.ones(shape, **kwargs)) for shape in shapes]
    for p in result:
        p.grad = torch.ones_like(p)
    return result


def launches(optimizer):
    optimizer.step()
    return optimizer._plan.launches


def test_two_groups_are_one_launch():
    decay, no_decay = params((3, 4), (5, 6)), params((4,), (6,))
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    (launch,) = launches(fusedstep.MAdam(groups))
    assert len(launch.index) == 4
    assert launch.row.tolist() == [0, 0, 1, 1]


@every_class
def test_465_groups_of_one_tensor_are_one_launch(cls):
    groups = [{"params": params((3,)), "lr": 1e-3 * (i + 1)} for i in range(465)]
    (launch,) = launches(cls(groups))
    assert launch.hyper.shape[0] == 465


def test_groups_that_need_another_kernel_are_another_launch():
    groups = [{"params": params((3,))}, {"params": params((3,)), "amsgrad": True}]
    assert len(launches(fusedstep.AdamW(groups))) == 2
    mixed = [*params((3,)), *params((3,), dtype=torch.bfloat16), *params((3,), dtype=torch.float64)]
    assert len(launches(fusedstep.AdamW(mixed))) == 3


def test_the_plan_is_kept_and_renewed():
    ps = params((3,), (4,))
    optimizer = fusedstep.AdamW(ps)
    optimizer.step()
    plan = optimizer._plan
    for p in ps:
        p.grad = torch.ones_like(p)  # a fresh gradient at another address
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert optimizer._plan is plan
    ps[0].data = ps[0].data.clone()
    optimizer.step()
    assert optimizer._plan is not plan


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("master_weights", False, True),
        ("skip_nonfinite", False, True),
        ("capturable", False, True),
        ("state_dtype", None, torch.bfloat16),
    ],
)
def test_an_option_assigned_as_it_was_keeps_the_plan(name, old, new):
    optimizer = fusedstep.AdamW(params((3,)))
    optimizer.step()
    plan = optimizer._plan
    setattr(optimizer, name, old)
    assert optimizer._plan is plan
    setattr(optimizer, name, new)
    assert optimizer._plan is None


def test_a_parameter_appended_to_a_group_is_seen():
    first, second = params((3,), (4,))
    optimizer = fusedstep.AdamW([first])
    optimizer.step()
    optimizer.param_groups[0]["params"].append(second)
    optimizer.step()
    assert int(optimizer.state[first]["step"]) == 2 and int(optimizer.state[second]["step"]) == 1


def test_a_replaced_state_is_used():
    (p,) = params((3,))
    optimizer = fusedstep.AdamW([p])
    optimizer.step()
    optimizer.state[p]["step"] = torch.tensor(100)
    optimizer.step()
    assert int(optimizer.state[p]["step"]) == 101
    optimizer.state.clear()
    optimizer.step()
    assert int(optimizer.state[p]["step"]) == 1


def test_options_changed_between_steps_take_effect():
    (p,) = params((3,))
    optimizer = fusedstep.MAdam([p])
    optimizer.step()
    optimizer.param_groups[0]["form"] = "released"
    (launch,) = launches(optimizer)
    assert launch.kind.variant == 2


BYTES = [  # per float32 parameter and step
    ("AdamW", {}, 28),
    ("AdamW", {"amsgrad": True}, 36),
    ("AdamW", {"max_grad_norm": 1.0}, 32),
    ("Adam", {}, 28),
    ("MAdam", {}, 44),
    ("MAdam", {"amsgrad": True}, 52),
    ("LaMAdam", {}, 44),
    ("LaProp", {}, 28),
    ("LaProp", {"amsgrad": True}, 36),
    ("LaProp", {"centered": True}, 36),
    ("LaProp", {"amsgrad": True, "centered": True}, 44),
    ("AdaMomentum", {}, 28),
    ("AdaMomentum", {"amsgrad": True}, 36),
    ("AvaGrad", {}, 28),
    ("AvaGrad", {"form": "released"}, 28),
    ("AvaGradW", {}, 28),
    ("DelayedAdam", {}, 28),
    ("MADGRAD", {}, 32),
    ("MADGRAD", {"momentum": 0.0}, 28),
    ("LAMB", {"max_grad_norm": None}, 40),
    ("LAMB", {}, 44),
]


@pytest.mark.parametrize("name, options, expected", BYTES, ids=name_of)
def test_bytes_per_parameter(name, options, expected):
    optimizer = getattr(fusedstep, name)(params((600,), (400,)), **options)
    optimizer.step()
    assert optimizer.bytes_moved() == 1000 * expected


def test_bytes_of_16_bit_modes():
    def moved(cls=fusedstep.AdamW, **options):
        optimizer = cls(params((10,), dtype=torch.bfloat16), **options)
        optimizer.step()
        return optimizer.bytes_moved()

    assert moved() == 10 * (2 + 2 + 2 + 16)
    assert moved(master_weights=True) == 10 * (2 + 2 + 8 + 16)
    assert moved(master_weights=True, state_dtype=torch.bfloat16) == 10 * (2 + 2 + 8 + 4 + 8)
    twice = moved(fusedstep.LAMB, master_weights=True, max_grad_norm=None)
    assert twice == 10 * ((2 + 4 + 16) + (8 + 2 + 8))  # the first pass moves no parameter


@pytest.fixture
def calls(monkeypatch):
    """The launches that the backend has run."""
    made, apply = [], BACKENDS["cpu"].apply

    def counted(launch, work):
        made.append(launch)
        apply(launch, work)

    monkeypatch.setattr(BACKENDS["cpu"], "apply", counted)
    return made


PASSES = [("AvaGrad", {}, 1), ("LAMB", {"max_grad_norm": None}, 2), ("LAMB", {}, 3)]


@pytest.mark.parametrize("name, options, expected", PASSES, ids=name_of)
def test_passes_over_memory(name, options, expected, calls):
    groups = [{"params": params((600,))}, {"params": params((400,)), "lr": 0.1}]
    optimizer = getattr(fusedstep, name)(groups, **options)
    optimizer.step()  # the first may survey the states
    calls.clear()
    optimizer.step()
    assert len(calls) == expected


@pytest.mark.parametrize("shapes", ["ragged", "strided", "empty"])
def test_older_torch_is_read_tensor_by_tensor(shapes, monkeypatch):
    """Before 2.10 tensors do not describe themselves through DLPack's C interface."""
    case, mode = testing.CASES[0], testing.MODES[0]
    want = testing.run(case, mode, shapes, "cpu")
    monkeypatch.setattr(gather, "_native_gatherer", lambda *_: None)
    monkeypatch.setattr(native, "module", None)
    assert not testing.differences(testing.run(case, mode, shapes, "cpu"), want)


def test_strange_things_in_a_group_do_not_reach_native_code():
    ps = params((3,), (4,))
    optimizer = fusedstep.AdamW(ps)
    optimizer.step()
    optimizer.param_groups[0]["params"][1] = "not a tensor"
    with pytest.raises(TypeError, match="parameter 1 is 'not a tensor', a str; .* Take it out"):
        optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    optimizer.step()
    assert int(optimizer.state[ps[0]]["step"]) == 2


def test_a_parameter_in_another_group_takes_its_options():
    a, b, c = params((3,), (3,), (3,))
    optimizer = fusedstep.AdamW([{"params": [a, b], "lr": 0.0}, {"params": [c], "lr": 1.0}])
    optimizer.step()
    groups = optimizer.param_groups
    groups[1]["params"].insert(0, groups[0]["params"].pop())
    optimizer.step()
    assert torch.equal(a, torch.ones(3)) and not torch.equal(b, torch.ones(3))


def test_a_float_in_place_of_a_tensor_of_the_same_value_is_taken():
    (p,) = params((3,))
    lr = torch.tensor(0.5)
    optimizer = fusedstep.AdamW([p], lr=lr)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    (launch,) = optimizer._plan.launches
    assert not launch.source.any() and 0.5 in launch.hyper.tolist()[0]


def test_a_tensor_rate_that_moved_is_followed():
    (p,) = params((3,))
    lr = torch.tensor(0.0)
    optimizer = fusedstep.AdamW([p], lr=lr, weight_decay=0.0)
    optimizer.step()
    lr.data = torch.tensor(0.5)
    optimizer.step()
    torch.testing.assert_close(p, torch.full((3,), 0.5))


@pytest.mark.parametrize("which", [slice(1), slice(-1, None), slice(None)], ids=str)
@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq", "lr_ema", "master_param"])
def test_states_that_moved_under_their_tensors_are_planned_anew(name, which):
    """As `for t in state.values(): t.data = t.data.to(device)` does, there and back."""
    ps, others = (model((3,), (4,), dtype=torch.bfloat16) for _ in range(2))
    optimizer, other = (fusedstep.LaProp(each, master_weights=True) for each in (ps, others))
    train(optimizer, ps, 1)
    before = optimizer._plan
    for p in ps[which]:
        state = optimizer.state[p]
        state[name].data = state[name].data.clone()
    train(optimizer, ps, 1, seed=1)
    train(other, others, 2)
    assert optimizer._plan is not before
    assert_same(stored(optimizer, ps), stored(other, others))
