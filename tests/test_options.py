"""What options may be, and what becomes of them and of gradients that change between steps."""

import fusedstep
import pytest
import torch

from tests.training import give_gradients, model, no_warning, nothing_moves, train


def test_betas_that_a_user_keeps_in_a_group_are_not_read():
    found = []
    for own in ({}, {"betas": (0.0, 0.5)}):
        params = model()
        train(fusedstep.MAdam([{"params": params, **own}]), params, 3)
        found.append(torch.cat([p.detach().flatten() for p in params]))
    assert torch.equal(*found)


SPOILED_RATES = {
    "is a torch.float32 tensor of shape": lambda t: setattr(t, "data", torch.tensor([0.1, 0.2])),
    "is a torch.float16 tensor of shape": lambda t: setattr(t, "data", t.data.half()),
    "is a torch.int64 tensor of shape": lambda t: setattr(t, "data", t.data.long()),
    "without memory of its own": lambda t: t.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("message", SPOILED_RATES)
def test_a_rates_tensor_that_is_no_number_any_more_is_refused(message):
    params, rate = model(), torch.tensor(0.1)
    optimizer = fusedstep.AdamW(params, lr=rate)
    train(optimizer, params, 1)
    held = [*params, *(t for p in params for t in optimizer.state[p].values())]
    SPOILED_RATES[message](rate)
    with nothing_moves(held), pytest.raises(ValueError, match=f"group 0: .*{message}"):
        optimizer.step()


def test_a_rate_that_is_where_the_parameters_are_is_not_read():
    params, rate = model(), torch.tensor(0.1)
    optimizer = fusedstep.AdamW(params, lr=rate)
    train(optimizer, params, 1)
    (launch,) = optimizer._plan.launches
    assert rate.data_ptr() in launch.source.tolist()[0], "kernels read it"


@pytest.mark.parametrize("number", [float, torch.tensor])
def test_each_launch_has_its_own_groups_numbers(number):
    found = []
    for together in (True, False):
        params = [model(dtype=dtype) for dtype in (torch.float32, torch.float64)]
        groups = [{"params": p, "lr": number(lr)} for p, lr in zip(params, (0.25, 0.5))]
        for p in (every := [*params[0], *params[1]]):
            p.grad = torch.ones_like(p)
        for each in [groups] if together else [[group] for group in groups]:
            fusedstep.AdamW(each).step()
        found.append(every)
    assert all(map(torch.equal, *found))


def test_a_rate_that_was_rounded_below_0_moves_nothing():
    params = model(dtype=torch.float64)
    give_gradients(params)
    with nothing_moves(params):
        fusedstep.AdamW(params, lr=-1e-13).step()


def test_a_decay_of_laprops_may_leave_nothing():
    with pytest.warns(UserWarning, match="takes 100.00% off the weights"):
        fusedstep.LaProp(model(), weight_decay=1.0)


def test_a_bound_in_a_tensor_is_not_read():
    fusedstep.MAdam(model(), beta2_range=(0.9, torch.tensor(0.5)))


def test_a_momentum_in_a_tensor_is_not_read_to_choose_a_kernel():
    (p,) = params = model((3,))
    optimizer = fusedstep.MADGRAD(params, momentum=torch.tensor(0.0))
    train(optimizer, params, 1)
    assert "x0" in optimizer.state[p]


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("betas", "Did you mean beta1?"),
        ("max_norm", "Did you mean max_grad_norm?"),
        ("fused", "Leave out what chooses among torch's implementations."),
        ("wd", "Use one of these, or leave it out."),
    ],
)
def test_a_likely_name_is_told_for_one_that_there_is_not(name, remedy):
    with pytest.raises(TypeError) as told:
        fusedstep.MAdam(model(), **{name: 1.0})
    assert str(told.value).endswith(f". {remedy}")


def test_an_entry_of_a_group_that_is_spelled_like_an_option_is_told():
    first, *others = model()
    with pytest.warns(UserWarning, match="'weight_decy' is .* mean weight_decay") as told:
        optimizer = fusedstep.MAdam([{"params": first, "weight_decy": 0.1}])
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="group 1: 'betas' is no option, .* Did you mean beta1"):
        optimizer.add_param_group({"params": others, "betas": (0.9, 0.95)})
    with no_warning(), pytest.raises(UserWarning):
        live = fusedstep.MAdam([first], capturable=True)
        live.add_param_group({"params": others, "weight_decy": 0.1})
    assert isinstance(live.param_groups[1]["lr"], torch.Tensor), "the group is whole"
    with no_warning():
        own = {"initial_lr": 0.1, "lr_scale": 0.5, "name": "head", 7: None}
        fusedstep.MAdam([{"params": first, **own, "algorithm": "madam", "backend": "auto"}])


@pytest.mark.parametrize("name", ["max_grad_norm", "form", "maximize"])
def test_an_option_of_groups_cannot_be_set_where_nobody_reads_it(name):
    optimizer = fusedstep.LAMB(model())
    before = optimizer.param_groups[0][name]
    with pytest.raises(AttributeError, match=f"LAMB: {name} is an option of each .*'{name}'"):
        setattr(optimizer, name, before)
    assert not hasattr(optimizer, name) and hasattr(type(optimizer), name)


def test_a_closure_may_change_an_option():
    params = model()
    optimizer = fusedstep.AdamW(params, lr=1.0)
    give_gradients(params)
    with nothing_moves(params):
        optimizer.step(lambda: optimizer.param_groups[0].update(lr=0.0))


def test_a_closure_computes_gradients_where_a_step_is_taken_without():
    (p,) = model((3,))
    optimizer = fusedstep.AdamW([p])

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    want = p.square().sum()
    with torch.no_grad():
        assert torch.equal(optimizer.step(closure), want)
    assert optimizer.state[p]["step"] == 1


def test_an_empty_sparse_gradient_is_refused_after_a_step():
    (p,) = params = model((0, 3))
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 1)
    p.grad = p.grad.to_sparse()
    with pytest.raises(ValueError, match="gradient of layout torch.sparse_coo"):
        optimizer.step()


def test_live_numbers_made_in_inference_mode_may_be_written_elsewhere():
    with torch.inference_mode():
        optimizer = fusedstep.AdamW(model(), capturable=True)
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"].mul_(0.5)  # as schedulers do
    assert optimizer.param_groups[0]["lr"] == 0.0005


class Forwards(fusedstep.AdamW):
    """It is built before it has what it forwards to."""

    def __init__(self, params, settings):
        super().__init__(params)
        self.settings = settings

    def __getattr__(self, name):
        return getattr(self.settings, name)


def test_a_subclass_may_forward_what_it_lacks():
    optimizer = Forwards(model(), settings=object())
    optimizer.skip_nonfinite = True
    assert optimizer.skip_nonfinite
