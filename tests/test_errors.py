"""Bad input: one error with what, value, why and remedy, before anything is written."""

from fractions import Fraction

import fusedstep
import numpy as np
import pytest
import torch

from tests.training import (
    arguments,
    assert_same,
    every_class,
    give_gradients,
    imaginary_part,
    model,
    on_every_backend,
    stored,
    train,
)

BAD_HYPERS = [
    (fusedstep.AdamW, {"lr": -1.0}, "group 0: lr is -1.0, outside"),
    (fusedstep.AdamW, {"lr": float("nan")}, "lr is nan"),
    (fusedstep.AdamW, {"lr": float("inf")}, "lr is inf"),
    (fusedstep.AdamW, {"lr": 10**400}, r"lr is 10+, outside \[0, inf\)"),
    (fusedstep.AdamW, {"lr": torch.tensor(1)}, "torch.int64 tensor"),
    (fusedstep.AdamW, {"lr": torch.tensor([0.1, 0.2])}, r"torch.float32 tensor of shape \(2,\)"),
    (
        fusedstep.AdamW,
        {"lr": torch.tensor(0.1).to_sparse()},
        "lr is a Tensor on cpu, without memory of its own",
    ),
    (fusedstep.AdamW, {"weight_decay": -0.1}, "weight_decay is -0.1"),
    (fusedstep.AdamW, {"eps": -1e-8}, "eps is -1e-08"),
    (fusedstep.AdamW, {"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
    (fusedstep.AdamW, {"max_grad_norm": float("nan")}, "max_grad_norm is nan"),
    (fusedstep.AdamW, {"betas": (1.0, 0.9)}, r"betas\[0\] is 1.0, outside \[0, 1\)"),
    (fusedstep.AdamW, {"betas": 0.9}, "betas is 0.9, a float. Pass a tuple or list"),
    (fusedstep.AdamW, {"betas": (0.9,)}, "betas is .*, a tuple. Pass a tuple or list of two"),
    (
        fusedstep.AdamW,
        {"betas": (0.9, 0.99, 0.999)},
        "betas is .*, a tuple. Pass a tuple or list of two",
    ),
    (fusedstep.Adam, {"form": "original"}, "form is 'original'; choose one of 'paper', 'released'"),
    (fusedstep.MAdam, {"beta1": -0.1}, "beta1 is -0.1"),
    (fusedstep.MAdam, {"beta2_range": (0.0, 0.9)}, r"beta2_range\[0\] is 0.0, outside \(0, 0.9\]"),
    (fusedstep.MAdam, {"beta2_range": (0.9, 0.5)}, r"beta2_range\[0\] is 0.9, outside \(0, 0.5\]"),
    (fusedstep.MAdam, {"beta2_range": (0.9, np.float32(0.5))}, r"is 0.9, outside \(0, 0.5\]"),
    (fusedstep.MAdam, {"beta2_range": (0.9, Fraction(1, 2))}, r"is 0.9, outside \(0, 0.5\]"),
    (fusedstep.LaProp, {"betas": (0.9, np.float64(0.999)), "eps": 1e-43}, "eps is 1e-43, which is"),
    (fusedstep.MAdam, {"beta2_range": (0.5, 1.1)}, r"beta2_range\[1\] is 1.1, outside \(0, 1\]"),
    (fusedstep.MAdam, {"delta": -1.0}, "delta is -1.0"),
    (fusedstep.LaMAdam, {"beta2_init": 1.0}, r"beta2_init is 1.0, outside \[0, 1\)"),
    (fusedstep.LaMAdam, {"state_dtype": torch.float16}, "state_dtype is torch.float16"),
    (fusedstep.LaProp, {"weight_decay": 1.5}, "weight_decay is 1.5"),
    (fusedstep.LaProp, {"centered_start": -1}, "centered_start is -1"),
]


@pytest.mark.parametrize("cls, options, message", BAD_HYPERS)
def test_bad_hyper_parameters(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(model(), **options)


@pytest.mark.parametrize("cls", [fusedstep.AdaMomentum, fusedstep.AvaGrad])
def test_an_eps_that_rounds_to_nothing(cls):
    cls(model(), eps=2.0**-149)
    cls(model(), eps=2.0**-150 * (1 + 2.0**-52))
    cls(model(dtype=torch.float64), eps=2.0**-1074)
    with pytest.raises(ValueError, match="is 0 in the arithmetic of torch.float32"):
        cls(model(), eps=2.0**-150)


@pytest.mark.parametrize("cls", [fusedstep.AdaMomentum, fusedstep.AvaGrad, fusedstep.LaProp])
def test_an_eps_of_0_is_refused_of_float64_too(cls):
    with pytest.raises(ValueError, match="is 0 in the arithmetic of torch.float64"):
        cls(model(dtype=torch.float64), eps=0.0)


def test_an_eps_that_its_bias_correction_rounds_to_nothing():
    for beta2 in (0.999, np.float16(0.999)):
        cases = ((fusedstep.LaProp, {}), (fusedstep.AvaGrad, {"form": "released"}))
        for cls, form in cases:
            cls(model(), betas=(0.9, beta2), eps=1e-40, **form)
            with pytest.raises(ValueError, match="is 0 in the arithmetic of torch.float32"):
                cls(model(), betas=(0.9, beta2), eps=2.0**-149, **form)
    fusedstep.AvaGrad(model(), betas=(0.9, 0.999), eps=1e-43, form="released")  # LaProp's is 0 here


@pytest.mark.parametrize("lr, told", [("fast", "'fast', a str"), (True, "True, a bool")])
def test_a_rate_that_is_no_number(lr, told):
    with pytest.raises(TypeError, match=f"lr is {told}"):
        fusedstep.AdamW(model(), lr=lr)


@every_class
def test_a_flag_is_no_tensor_and_no_word(cls):
    """A tensor's memory would be read as a float32."""
    flags = [name for name, value in arguments(cls).items() if isinstance(value, bool)]
    assert {"maximize", *cls.constants} - {"released", "without_momentum"} <= set(flags)
    for name in flags:
        for bad in (torch.tensor(False), "yes", None):
            with pytest.raises(ValueError, match=f"group 0: {name} is .* Pass True or False"):
                cls(model(), **{name: bad})
        params = model()
        optimizer = cls(params, **{name: np.bool_(True)})
        train(optimizer, params, 1)
        want = stored(optimizer, params)
        optimizer.param_groups[0][name] = torch.tensor(True)
        with pytest.raises(ValueError, match=f"group 0: {name} is tensor"):
            optimizer.step()
        assert_same(stored(optimizer, params), want)


def test_a_bad_group_is_not_added():
    optimizer = fusedstep.MAdam(model())
    with pytest.raises(ValueError, match="group 1: lr is -2.0"):
        optimizer.add_param_group({"params": model(), "lr": -2.0})
    assert len(optimizer.param_groups) == 1


def test_a_group_cannot_choose_for_itself_what_the_optimizer_chooses():
    own = {"backend": "cpu", "master_weights": False, "capturable": False}
    fusedstep.AdamW([{"params": model(), **own}], backend="cpu")  # as another's groups may say
    for name, value in (("backend", "cuda"), ("master_weights", True), ("skip_nonfinite", True)):
        with pytest.raises(ValueError, match=f"group 0: {name} is {value!r}, and .* of the whole"):
            fusedstep.AdamW([{"params": model(), name: value}])


@pytest.mark.parametrize(
    "name, bad, told",
    [
        ("lr", float("nan"), "lr is nan"),
        ("betas", 0.9, "betas is 0.9, a float. Pass a tuple or list"),
        ("form", "nonsense", "form is 'nonsense'"),
    ],
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_an_option_that_turns_bad_is_refused_before_the_step(name, bad, told, scheduled):
    params = model()
    optimizer = fusedstep.LaProp(params)
    (group,) = optimizer.param_groups
    for lr in (0.5, 0.25):
        group["lr"] = lr
        train(optimizer, params, 1)
    want = stored(optimizer, params)
    group.update({"lr": 0.125 if scheduled else lr, name: bad})
    with pytest.raises(ValueError, match=told):
        optimizer.step()
    assert_same(stored(optimizer, params), want)


def overlapping():
    memory = torch.zeros(8)
    return [torch.nn.Parameter(memory[:5]), torch.nn.Parameter(memory[4:])]


BAD_PARAMS = [
    (
        lambda: [torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))],
        "complex64.*view_as_complex",
    ),
    (lambda: [torch.nn.Parameter(torch.zeros(1).expand(4))], "overlap or leave gaps"),
    (lambda: [torch.nn.Parameter(torch.zeros(4, 4)[:, ::2])], "overlap or leave gaps"),
    (lambda: [torch.nn.Parameter(torch.zeros(4, 4)[:, :2])], "overlap or leave gaps"),
    (lambda: [torch.nn.Parameter(imaginary_part([1.0]))], "elements negated.*resolve_neg"),
    (overlapping, "parameter 1 and .*parameter 2 share memory"),
]


@pytest.mark.parametrize("make, message", BAD_PARAMS)
def test_parameters_kernels_cannot_serve(make, message):
    bad = make()
    good = model((3,))
    params = [*good, *bad]
    for p in params:
        p.grad = torch.zeros_like(p) if p.is_complex() else torch.ones_like(p)
    optimizer = fusedstep.MAdam(params)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert not optimizer.state and torch.equal(good[0], model((3,))[0])


@every_class
@pytest.mark.parametrize("what", ["step", "all"])
def test_parameters_cannot_share_a_state(cls, what):
    params = model((3,), (3,))
    optimizer = cls(params)
    train(optimizer, params, 2)
    first, second = (optimizer.state[p] for p in params)
    second.update({name: t for name, t in first.items() if what in (name, "all")})
    params[1].grad = None
    optimizer.step()  # one of them alone may
    before = stored(optimizer, params)
    with pytest.raises(ValueError, match="parameter 0, its .* parameter 1, its .* share memory"):
        train(optimizer, params, 1)
    assert_same(stored(optimizer, params), before)


@pytest.mark.parametrize("planned", [False, True])
@on_every_backend
def test_a_bad_gradient_in_the_last_tensor_changes_nothing(cls, planned, backend, device):
    params = model(device=device)
    optimizer = cls(params, backend=backend)
    if planned:
        train(optimizer, params, 2)
    want = stored(optimizer, params) if planned else [p.detach().clone() for p in params]
    give_gradients(params)
    params[-1].grad = torch.ones_like(params[-1]).to_sparse()
    with pytest.raises(
        ValueError, match="group 0, parameter 2 has a gradient of layout torch.sparse"
    ):
        optimizer.step()
    if planned:
        assert_same(stored(optimizer, params), want)
    else:
        assert not optimizer.state and all(map(torch.equal, params, want))
    params[-1].grad = torch.ones_like(params[-1])
    optimizer.step()  # and the optimizer is still usable


def test_parameters_that_have_names_are_told_by_them():
    layer = torch.nn.Linear(3, 2)
    optimizer = fusedstep.MAdam(layer.named_parameters())
    give_gradients(layer.parameters())
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][1]["grad_var"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"group 0, parameter 1 \(bias\): its state grad_var is"):
        optimizer.load_state_dict(saved)
    layer.weight.grad = torch.ones(2, 3).to_sparse()
    with pytest.raises(ValueError, match=r"group 0, parameter 0 \(weight\) has a gradient of"):
        optimizer.step()


def test_a_moved_parameter_with_a_stale_gradient_is_refused():
    params = model()
    optimizer = fusedstep.MAdam(params)
    train(optimizer, params, 1)
    params[0].data = params[0].data.to(torch.float64)
    with pytest.raises(
        ValueError, match="dtype torch.float64 and a gradient of dtype torch.float32"
    ):
        optimizer.step()


def test_a_gradient_without_memory_is_refused():
    params = model()
    optimizer = fusedstep.AdamW(params)
    train(optimizer, params, 2)
    give_gradients(params)
    params[1].grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="parameter 1: its gradient is a Tensor on cpu without"):
        optimizer.step()
    params[1].grad = torch._efficientzerotensor(params[1].shape)
    with pytest.raises(ValueError, match="without memory of its own"):
        optimizer.step()


def test_amp_takes_tensors_and_a_failed_step_leaves_no_trace():
    p = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = fusedstep.MADGRAD([p], momentum=0.0)
    p.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (4, 2), check_invariants=True)
    optimizer.grad_scale = 8.0
    with pytest.raises(TypeError, match="optimizer.grad_scale is 8.0"):
        optimizer.step()
    del optimizer.grad_scale
    p.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 2), (4, 2), check_invariants=True)
    optimizer.step()
    assert (p[:3] == 1).all() and (p[3] != 1).all()
