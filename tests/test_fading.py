"""MAdam's and LaMAdam's beta_prod, which vanishes, and the bound that says when (numerics.md)."""

import fusedstep
import pytest
import torch

from tests.training import assert_same, model, stored, train

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@dtypes
def test_a_beta_prod_is_0_where_one_minus_it_is_1(dtype, backend, device):
    """Where the bound says so it is neither read nor written: what lies there does not matter."""
    eps = torch.finfo(dtype).eps
    least = eps / 4
    params = model((2100,), (2100,), (2100,), dtype=dtype, device=device)
    optimizer = fusedstep.MAdam(params, beta2_range=(0.5, 0.5), backend=backend)
    train(optimizer, params, 1)
    above, at, below = (optimizer.state[p] for p in params)
    above["beta_prod"].fill_(2 * least)[0] = 2 * least * (1 - eps)
    above["beta_prod_bound"].fill_(2 * least)
    at["beta_prod"].fill_(least)
    at["beta_prod_bound"].fill_(least)
    below["beta_prod"].fill_(torch.nan)
    below["beta_prod_bound"].fill_(least * (1 - eps))
    train(optimizer, params, 1)
    assert above["beta_prod"][0] == 0 and (above["beta_prod"][1:] == least).all()
    assert (at["beta_prod"] == 0).all()
    assert below["beta_prod"].isnan().all() and params[2].isfinite().all()


@dtypes
@pytest.mark.parametrize("beta", [0.999, 0.9, 0.7, 1.0])
def test_no_beta_prod_is_above_its_bound(beta, dtype):
    p = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    optimizer = fusedstep.MAdam([p], beta2_range=(beta, beta), backend="reference")
    for _ in range(200):
        p.grad = torch.ones_like(p)
        optimizer.step()
        state = optimizer.state[p]
        assert state["beta_prod"].double() <= state["beta_prod_bound"]


def changing_precision(backend, device, load):
    """Thirty steps in float64, two in float32, three in float64."""
    (p,) = params = model((50,), dtype=torch.float64, device=device)
    optimizer = fusedstep.MAdam(params, beta2_range=(0.4, 0.5), backend=backend)
    for seed, (dtype, steps) in enumerate(
        [(torch.float64, 30), (torch.float32, 2), (torch.float64, 3)]
    ):
        p.grad, p.data = None, p.data.to(dtype)
        if load:
            saved = optimizer.state_dict()
            optimizer = fusedstep.MAdam(params, backend=backend)
            optimizer.load_state_dict(saved)
        train(optimizer, params, steps, seed=seed)
    return stored(optimizer, params)


@pytest.mark.parametrize("load", [False, True], ids=["converted", "loaded"])
def test_a_beta_prod_in_fewer_digits_has_its_bound_anew(load, backend, device):
    """float32 calls what float64 keeps zero: the column must be read again."""
    want = changing_precision("reference", "cpu", load)
    assert_same(changing_precision(backend, device, load), want)


@pytest.mark.parametrize(
    "rounded, to",
    [("beta_prod", torch.float16), ("beta_prod_bound", torch.bfloat16)],  # up, and down
    ids=str,
)
@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.LaMAdam])
def test_a_beta_prod_that_may_be_above_its_bound_has_it_anew(cls, rounded, to, backend, device):
    """As in a checkpoint that was cast to fewer digits."""
    found = []
    for by, where in (("reference", "cpu"), (backend, device)):
        params = model(device=where)
        optimizer = cls(params, backend=by, beta2_range=(0.999, 0.999))
        train(optimizer, params, 2)
        saved = optimizer.state_dict()
        for state in saved["state"].values():
            state["beta_prod"] = torch.full_like(state["beta_prod"], 1.0035 * 2.0**-25)
            state["beta_prod_bound"] = torch.tensor(1.0038 * 2.0**-25, dtype=torch.float64)
            state[rounded] = state[rounded].to(to)
        optimizer.load_state_dict(saved)
        train(optimizer, params, 2)
        found.append(stored(optimizer, params))
    assert_same(*found)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "bucket"])
@dtypes
def test_what_lies_in_a_faded_beta_prod_changes_no_bit(dtype, offset, backend, device):
    """Where beta depends on it: a NaN would make it the lower limit."""
    found = []
    for value in (0.0, torch.nan):
        (p,) = params = model((5000,), dtype=dtype, device=device)
        optimizer = fusedstep.MAdam(params, beta2_range=(0.3, 0.7), backend=backend)
        train(optimizer, params, 1)
        optimizer.state[p]["beta_prod"].fill_(value)
        optimizer.state[p]["beta_prod_bound"].fill_(2.0**-60)
        memory = torch.empty(5001, dtype=dtype, device=device)
        factor = torch.linspace(0.1, 9, 5000, device=device)
        p.grad = memory[offset : offset + 5000].copy_(p.grad * factor)
        optimizer.step()
        found.append(p.detach().clone())
    assert torch.equal(*found)
