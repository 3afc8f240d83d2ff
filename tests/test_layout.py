"""Memory of every shape: the right answer, and never a byte outside (canaries around each view)."""

import fusedstep
import pytest
import torch
from fusedstep import testing

CANARY = 12345.0
SHAPE = (2, 3, 4, 6)


def channels_last(t):
    return t.to(memory_format=torch.channels_last)


def transposed(t):
    return t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


def gaps(t):
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), CANARY)
    wide[..., ::2] = t
    return wide[..., ::2]


LAYOUTS = [torch.clone, channels_last, transposed]


def one_step(backend, device, make_param, make_grad):
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    p = torch.nn.Parameter(make_param(values).to(device))
    p.grad = make_grad(gradient).to(device)
    strides = p.stride(), p.grad.stride()
    fusedstep.MAdam([p], lr=0.1, backend=backend).step()
    assert (p.stride(), p.grad.stride()) == strides
    return p.detach().cpu().contiguous()


@pytest.mark.parametrize("make_grad", [*LAYOUTS, gaps], ids=lambda f: f"grad_{f.__name__}")
@pytest.mark.parametrize("make_param", LAYOUTS, ids=lambda f: f"param_{f.__name__}")
def test_layouts_do_not_matter(make_param, make_grad, backend, device):
    want = one_step("reference", "cpu", torch.clone, torch.clone)
    got = one_step(backend, device, make_param, make_grad)
    assert testing.difference("p", got, want) is None


def test_strides_of_size_one_dimensions_do_not_matter(backend, device):
    p = torch.nn.Parameter(torch.ones(1, 5, 1, device=device))
    q = torch.nn.Parameter(torch.ones(5, device=device).as_strided((1, 5, 1), (777, 1, 3)))
    for t in (p, q):
        t.grad = torch.arange(5.0, device=device).as_strided((1, 5, 1), (9, 1, 9))
    fusedstep.AdamW([p, q], backend=backend).step()
    assert torch.equal(p, q) and not torch.equal(p, torch.ones_like(p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4])
def test_nothing_outside_a_view_is_written(offset, dtype, backend, device):
    memory = torch.full((1060,), CANARY).to(device, dtype)
    canary = memory[0].clone()
    view = memory[8 + offset : 8 + offset + 1027]
    view.copy_(torch.randn(1027, generator=torch.Generator().manual_seed(0)))
    p = torch.nn.Parameter(view)
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    optimizer = fusedstep.MAdam([p], lr=0.5, backend=backend)
    for _ in range(2):
        optimizer.step()
    assert (memory[: 8 + offset] == canary).all() and (memory[8 + offset + 1027 :] == canary).all()
    assert (p != before).all()
