"""What csrc/gather.h looks at in every step: only what is as planned goes the fast way."""

import fusedstep
import pytest
import torch
from fusedstep import testing
from fusedstep.gather import Gatherer

from tests.training import model, nothing_moves, train


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch is older than 2.10"
)
@pytest.mark.parametrize("shapes", [((4,), (3, 2), ()), ((0,), (1, 5, 1))], ids=["some", "empty"])
@pytest.mark.parametrize("mode", testing.MODES, ids=lambda mode: mode.id)
def test_what_is_as_planned_is_found_without_python(mode, shapes, monkeypatch):
    params = [mode.parameter(p.detach()) for p in model(*shapes, dtype=mode.param)]
    optimizer = fusedstep.AdamW(params, **mode.options)
    for t in range(3):
        for p in params:
            p.grad = torch.ones(p.shape, dtype=mode.grad)
            if p.ndim == 3:
                p.grad = p.grad.as_strided(p.shape, (9, 1, 7))  # of dimensions of size 1
        if t == 2:
            params[0].grad = None
        optimizer.step()
        monkeypatch.setattr(Gatherer, "_gather_each", None)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2] + [3] * (len(params) - 1)


CHANGES = {
    "a gradient's width": (torch.float32, lambda p, near: (None, torch.ones(4).double())),
    "a gradient's smaller width": (torch.float64, lambda p, near: (None, torch.ones(4))),
    "a gradient of integers": (torch.float32, lambda p, near: (None, torch.ones(4).int())),
    "a gradient's dtype": (torch.bfloat16, lambda p, near: (None, torch.ones(4).half())),
    "a gradient's digits": (torch.float16, lambda p, near: (None, torch.ones(4).bfloat16())),
    "a gradient's size": (torch.float32, lambda p, near: (None, torch.ones(3))),
    "a gradient of more dimensions": (torch.float32, lambda p, near: (None, torch.ones(2, 4).t())),
    "a parameter's width": (torch.float32, lambda p, near: (near.view(torch.float64)[:4], None)),
    "a parameter's dtype": (torch.bfloat16, lambda p, near: (near.view(torch.float16)[:4], None)),
    "a size": (torch.float32, lambda p, near: (near[:2], torch.ones(2))),
    "no dimension": (torch.float32, lambda p, near: (near[0], p.grad[0])),
    "other strides": (torch.float32, lambda p, near: (near[:8:2], torch.ones(8)[::2])),
}
TOLD = (
    "has (dtype|shape) .* and a gradient of|its state exp_avg is .* of shape|overlap or leave gaps"
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_exchanged_under_its_tensor_is_not_as_planned(change):
    """The new one has the same address and differs in one thing, so that nothing else tells."""
    dtype, exchange = CHANGES[change]
    near = torch.ones(16, dtype=dtype)
    p = torch.nn.Parameter(near[:4])
    optimizer = fusedstep.AdamW([p])
    train(optimizer, [p], 2)
    data, grad = exchange(p, near)
    if data is not None:
        p.data = data
    if grad is not None:
        p.grad.data = grad
    held = [near, *optimizer.state[p].values()]
    with nothing_moves(held), pytest.raises(ValueError, match=TOLD):
        optimizer.step()


def test_a_gradient_that_became_wider_is_read_as_it_is():
    p, q = params = [torch.nn.Parameter(torch.ones(4, dtype=torch.float16)) for _ in range(2)]
    optimizer = fusedstep.AdamW(params, lr=0.1)
    train(optimizer, params, 2)
    for t in params:
        t.grad, t.data = torch.full_like(t, 3.0), torch.ones_like(t)
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[t][name].zero_()
    optimizer.step()
    q.grad.data = q.grad.float()
    optimizer.step()
    assert torch.equal(p, q)
