"""The optimizers as a user meets them: gradients, hyper-parameters."""

from collections import UserList
from fractions import Fraction

import fusedstep
import numpy as np
import pytest
import torch

from tests.training import assert_same, every_class, give_gradients, model, stored, train

# Gradients that are not there


@every_class
def test_without_gradients_a_step_does_nothing(cls, backend, device):
    params = model(device=device)
    before = [p.detach().clone() for p in params]
    optimizer = cls(params, backend=backend)
    optimizer.step()
    assert not optimizer.state and all(map(torch.equal, params, before))
    train(optimizer, params, 1)
    optimizer.zero_grad()
    want = stored(optimizer, params)
    optimizer.step()
    assert_same(stored(optimizer, params), want)


@every_class
def test_a_parameter_counts_its_own_steps(cls):
    params = model()
    optimizer = cls(params)
    for t in range(6):
        give_gradients(params, t)
        if t % 2:
            params[1].grad = None
        optimizer.step()
    own = cls is not fusedstep.MADGRAD  # whose k is one for all
    assert [int(optimizer.state[p]["step"]) for p in params] == [6, 3 if own else 6, 6]


def test_parameters_may_join_later_at_a_rate_of_their_own():
    params, late, alone = model(), model((3, 3), seed=9), model((3, 3), seed=9)
    optimizer, other = fusedstep.MAdam(params), fusedstep.MAdam(alone, lr=0.1)
    train(optimizer, params, 2)
    optimizer.add_param_group({"params": late, "lr": 0.1})
    for t in range(2):
        give_gradients(params + late, t)
        alone[0].grad = late[0].grad.clone()
        optimizer.step()
        other.step()
    assert_same(stored(optimizer, late), stored(other, alone))
    assert int(optimizer.state[late[0]]["step"]) == 2
    assert int(optimizer.state[params[0]]["step"]) == 4


ALTERED = {
    "freed": lambda p: setattr(p, "data", torch.empty(0)),
    "without storage": lambda p: p.untyped_storage().resize_(0),
    "quantized": lambda p: setattr(p, "data", p.data.to(torch.int8)),
    "a view": lambda p: setattr(p, "data", torch.zeros(4, 6)[:, ::2]),
    "expanded": lambda p: setattr(p, "data", torch.zeros(1, 1).expand(4, 3)),
    "grown": lambda p: setattr(p, "data", torch.ones(5, 3)),
}


@pytest.mark.parametrize("how", ALTERED)
@every_class
def test_what_becomes_of_a_frozen_parameter_does_not_matter(cls, how):
    """As after training in phases; a gradient calls for the checks that others have to pass."""
    frozen, other = params = model((4, 3), (2,))
    optimizer = cls(params, max_grad_norm=1.0)
    train(optimizer, params, 2)
    frozen.requires_grad_(False).grad = None
    state = {name: value.clone() for name, value in optimizer.state[frozen].items()}
    ALTERED[how](frozen)
    before = other.detach().clone()
    train(optimizer, [other], 2)
    assert not torch.equal(other, before) and optimizer.state[other]["step"] == 4
    assert_same(optimizer.state[frozen], state)
    frozen.data = torch.ones(4, 3)
    train(optimizer, params, 1)
    assert optimizer.state[frozen]["step"] == 3 and not torch.equal(frozen, torch.ones(4, 3))


@every_class
def test_a_frozen_parameter_that_can_be_stepped_again_takes_part_at_once(cls):
    """AvaGrad's mean goes over it, MADGRAD counts its steps: whenever the step was planned."""
    results = []
    for planned_anew in (False, True):
        frozen, other = params = model((4, 3), (2,))
        optimizer = cls(params)
        train(optimizer, params, 2)
        frozen.grad, memory = None, frozen.data
        frozen.data = torch.empty(0)
        train(optimizer, [other], 1)
        frozen.data = memory
        if planned_anew:
            optimizer.load_state_dict(optimizer.state_dict())
        train(optimizer, [other], 2)
        results.append(stored(optimizer, params))
    assert_same(*results)


def test_a_parameter_that_joins_beside_a_frozen_one_has_the_present_count():
    frozen, other, late = params = model((4, 3), (2,), (5,))
    optimizer = fusedstep.MADGRAD(params)
    train(optimizer, [frozen, other], 2)
    frozen.grad, frozen.data = None, torch.empty(0)
    train(optimizer, [other], 3)
    train(optimizer, [other, late], 1)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 6, 6]


@every_class
def test_what_others_keep_for_a_frozen_parameter_makes_no_state(cls):
    frozen, other = params = model((4, 3), (2,))
    optimizer = cls(params)
    optimizer.state[frozen]["name"] = "frozen"
    train(optimizer, [other], 1)
    assert optimizer.state[frozen] == {"name": "frozen"}
    train(optimizer, params, 1)
    assert optimizer.state[frozen]["step"] >= 1


@every_class
def test_a_parameter_whose_memory_another_took_over_may_stay_if_it_is_idle(cls):
    """As after `weight_norm` in the middle of training, or with a `Parameter(old.data)`."""
    old, other = params = model((5,), (3,))
    optimizer = cls(params)
    train(optimizer, params, 1)
    old.grad = None
    new = torch.nn.Parameter(old.data)
    optimizer.add_param_group({"params": [new]})
    moved = new.clone()
    for t in (1, 2):
        give_gradients([new, other], t)
        optimizer.step()
    assert not torch.equal(new, moved) and optimizer.state[new]
    give_gradients([old])
    before = stored(optimizer, [old, new, other])
    with pytest.raises(ValueError, match="group 0, parameter 0 and .*group 1.* share memory"):
        optimizer.step()
    assert_same(stored(optimizer, [old, new, other]), before)
    new.grad = None
    optimizer.step()
    assert not torch.equal(new, before["param 1"])


def test_a_gradient_may_be_of_the_parameters_own_making(backend, device):
    class Own(torch.nn.Parameter):
        grad = property(lambda self: torch.full_like(self.detach(), 0.5), lambda self, value: None)

    mine, plain = Own(torch.ones(3, device=device)), torch.nn.Parameter(torch.ones(3))
    plain.grad = torch.full((3,), 0.5)
    for p in (mine, plain):
        optimizer = fusedstep.AdamW([p], backend=backend if p is mine else "reference")
        for _ in range(2):
            optimizer.step()
    assert torch.equal(mine.cpu(), plain)


# Hyper-parameters


@every_class
def test_a_tensor_lr_is_read_where_it_is(cls, backend, device):
    tensor_params, float_params = model(device=device), model(device=device)
    lr = torch.tensor(0.01, dtype=torch.float64, device=device)
    a = cls(tensor_params, lr=lr, backend=backend)
    b = cls(float_params, lr=0.01, backend=backend)
    for t, value in enumerate((0.01, 0.02, 0.005)):
        lr.fill_(value)
        b.param_groups[0]["lr"] = value
        train(a, tensor_params, 1, seed=t)
        train(b, float_params, 1, seed=t)
    assert_same(stored(a, tensor_params), stored(b, float_params))


@every_class
def test_tensors_that_change_in_place_give_the_references_bits(cls, backend, device):
    found = []
    for where, on in ((backend, device), ("reference", "cpu")):
        params = model(device=on)
        names = [n for n in ("lr", "eps", "weight_decay") if n in cls(params).defaults]
        tensors = {name: torch.tensor(0.1, device=on) for name in names}
        optimizer = cls(params, **tensors, backend=where)
        for t in range(4):
            for tensor in tensors.values():
                tensor.fill_((0.1, 0.1, 1e-3, 0.02)[t])
            train(optimizer, params, 1, seed=t)
        found.append(stored(optimizer, params))
    assert_same(*found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:triton")  # 3.6 interprets with older numpy
@pytest.mark.filterwarnings("error")
def test_numbers_of_any_kind_and_size_are_taken_without_a_warning(backend, device):
    rate = torch.tensor(0.01, dtype=torch.float64, device=device, requires_grad=True)
    numbers = {"lr": rate, "eps": 1e300, "weight_decay": np.float64(0.5)}
    numbers |= {"betas": (np.float32(0.5), Fraction(3, 4)), "max_grad_norm": np.float16(2.0)}
    found = []
    for where, on in ((backend, device), ("reference", "cpu")):
        params = model(device=on)
        optimizer = fusedstep.AvaGradW(params, **numbers, backend=where)
        train(optimizer, params, 2)
        found.append(stored(optimizer, params))
    assert_same(*found)


class ListConfig(UserList):
    """A sequence that is no list, like the lists in Hydra's configurations."""


@every_class
def test_options_from_a_configuration_are_as_if_written_out(cls):
    defaults = cls(model()).defaults
    written = {name: value for name, value in defaults.items() if isinstance(value, tuple)}
    configured = {name: ListConfig(value) for name, value in written.items()}
    params, late = model(), model(seed=1)
    optimizer = cls(params, **configured)
    optimizer.add_param_group({"params": late, **configured})
    assert written or not any(name.startswith("beta") for name in defaults)
    assert all(written.items() <= group.items() for group in optimizer.param_groups)
    train(optimizer, params + late, 1)
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= configured
    optimizer.load_state_dict(saved)
    train(optimizer, params + late, 1)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_lamadam_at_rate_zero_moves_nothing(form):
    params = model()
    optimizer = fusedstep.LaMAdam(params, lr=0.0, weight_decay=0.5, form=form)
    before = [p.detach().clone() for p in params]
    train(optimizer, params, 3)
    assert all(map(torch.equal, params, before))


def test_maximize_is_the_mirrored_gradient():
    up, down = model(), model()
    a, b = fusedstep.MAdam(up, maximize=True), fusedstep.MAdam(down)
    give_gradients(up)
    for p, q in zip(up, down, strict=True):
        q.grad = -p.grad
    a.step()
    b.step()
    assert_same(stored(a, up), stored(b, down))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": False, "betas2": (0.9, 0.99)}])
@every_class
def test_an_argument_that_there_is_not_is_told_with_those_that_there_are(cls, options):
    with pytest.raises(TypeError) as told:
        cls(model(), **options)
    message = f"{cls.__name__} has no argument {', '.join(map(repr, options))}. It takes "
    assert str(told.value).startswith(message)
    there = str(told.value).removeprefix(message).partition(". ")[0].split(", ")
    assert {"lr", "max_grad_norm", "capturable"} <= set(there) and len(there) == len(set(there))
    assert "common" not in there, "that is how the constructor takes them"
