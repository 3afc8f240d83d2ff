"""Memory of every shape: the right answer, and never a byte outside (canaries around each view)."""

from itertools import product

import fusedstep
import pytest
import torch
from fusedstep.backends import BACKENDS
from fusedstep.memory import overlaps

from tests.training import (
    WITHOUT_SUMS,
    assert_same,
    every_class,
    give_gradients,
    imaginary_part,
    model,
    on_every_backend,
    stored,
    train,
)

CANARY = 12345.0
SHAPE = (2, 3, 4, 6)


def contiguous(t):
    return t.clone()


def channels_last(t):
    return t.to(memory_format=torch.channels_last)


def transposed(t):
    return t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


def gaps(t):
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), CANARY)
    wide[..., ::2] = t
    return wide[..., ::2]


LAYOUTS = [contiguous, channels_last, transposed]


def one_step(cls, backend, device, layouts):
    """Parameters in the midst of canaries, for every pair of layouts; what a step makes of them."""
    params, memories = [], []
    for i, (make_param, make_grad) in enumerate(layouts):
        generator = torch.Generator().manual_seed(i)
        values, gradient = torch.randn(2, *SHAPE, generator=generator)
        strides = make_param(values).stride()
        memories.append(torch.full((values.numel() + 14,), CANARY, device=device))
        params.append(torch.nn.Parameter(memories[-1].as_strided(SHAPE, strides, 7).copy_(values)))
        params[-1].grad = make_grad(gradient).to(device)
    strides = [(p.stride(), p.grad.stride()) for p in params]
    cls(params, lr=0.1, backend=backend).step()
    assert [(p.stride(), p.grad.stride()) for p in params] == strides
    for memory in memories:
        assert (memory[:7] == CANARY).all() and (memory[-7:] == CANARY).all()
    return {f"param {i}": p.detach().cpu().contiguous() for i, p in enumerate(params)}


@on_every_backend
def test_a_gradient_may_have_any_layout(cls, backend, device):
    """It acts like one laid out as its parameter, whose layout affects only norms (N7)."""
    pairs = list(product(LAYOUTS, [*LAYOUTS, gaps]))
    got = one_step(cls, backend, device, pairs)
    assert_same(got, one_step(cls, "cpu", "cpu", [(layout, layout) for layout, _ in pairs]))
    if cls in WITHOUT_SUMS:
        assert_same(got, one_step(cls, "reference", "cpu", [(contiguous, contiguous)] * len(pairs)))


def test_strides_of_size_one_dimensions_do_not_matter(backend, device):
    p = torch.nn.Parameter(torch.ones(5, 1, 4, device=device).permute(2, 1, 0))
    q = torch.nn.Parameter(torch.ones(20, device=device).as_strided((4, 1, 5), (1, 777, 4)))
    for t in (p, q):
        t.grad = torch.arange(20.0, device=device).as_strided((4, 1, 5), (1, 9, 4))
    fusedstep.AdamW([p, q], backend=backend).step()
    assert torch.equal(p, q) and not torch.equal(p, torch.ones_like(p))


@pytest.mark.parametrize("values", [[3.0], [3.0, -2.0]], ids=len)
def test_a_gradient_may_be_a_negated_view(values, backend, device):
    """Autograd stores one where it is an imaginary part; a plan that is kept must see it too."""
    p, q = (torch.nn.Parameter(torch.ones(len(values), device=device)) for _ in range(2))
    optimizers = [fusedstep.AdamW([t], backend=backend) for t in (p, q)]
    for negated in (True, False, True):
        p.grad, q.grad = imaginary_part(values, device), torch.tensor(values, device=device)
        assert p.grad.is_neg()
        if not negated:
            p.grad = p.grad.resolve_neg()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(p, q)


def test_numbers_and_states_may_not_be_negated_in_memory(backend, device):
    """A scale is read by value and a state copied; a rate, whose memory is followed, is refused."""
    (p, q) = (torch.nn.Parameter(torch.ones(3, device=device)) for _ in range(2))
    optimizers = [fusedstep.AdamW([t], backend=backend) for t in (p, q)]
    for t, optimizer in zip((p, q), optimizers, strict=True):
        for scale in (1.0, 8.0):
            t.grad = torch.tensor([1.0, 2.0, 3.0], device=device)
            optimizer.grad_scale = torch.tensor([scale], device=device)
            if t is p:
                optimizer.grad_scale = imaginary_part([scale], device)
            optimizer.step()
            if t is p:
                held = optimizer.state[p]
                held["exp_avg"] = torch._neg_view(-held["exp_avg"])
    assert torch.equal(p, q)
    assert torch.equal(optimizers[0].state[p]["exp_avg"], optimizers[1].state[q]["exp_avg"])
    bytes_ = torch.zeros(9, dtype=torch.uint8)
    for lr in (
        imaginary_part([0.1], device)[0],
        torch.frombuffer(bytes_.numpy(), offset=1, count=1, dtype=torch.float32)[0],
    ):
        with pytest.raises(ValueError, match="lr is a Tensor on .*, without memory of its own"):
            fusedstep.AdamW([p], lr=lr, backend=backend)


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


EMPTIES = [[(0,), (5,)], [(5,), (0, 3), (7,)], [(5,), (0,)], [(0,)], [(0, 2), (0,)]]


@pytest.mark.parametrize("shapes", EMPTIES, ids=str)
@on_every_backend
def test_empty_tensors_take_their_steps_and_change_no_other(cls, shapes, backend, device):
    params, others = model(*shapes, device=device), model(*shapes)
    optimizer = cls(params, backend=backend, max_grad_norm=0.5)
    full = [p for p in others if p.numel()]
    train(optimizer, params, 2)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2] * len(params)
    if full:
        alone = cls(full, max_grad_norm=0.5)
        for t in range(2):
            give_gradients(others, t)
            alone.step()
        kept = [p for p in params if p.numel()]
        assert_same(stored(optimizer, kept), stored(alone, full))


@every_class
def test_states_follow_a_parameter_that_is_laid_out_anew(cls):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        params = model((2, 3, 4, 5))
        optimizer = cls(params)
        train(optimizer, params, 2)
        params[0].data = params[0].data.to(memory_format=layout)
        train(optimizer, params, 2)
        results.append(params[0].detach().contiguous())
    torch.testing.assert_close(*results)


def test_a_count_may_be_negated_in_memory():
    (p,) = params = model((3,))
    optimizer = fusedstep.LaProp(params, form="released")
    train(optimizer, params, 2)
    state = optimizer.state[p]
    state["lr_ema"] = torch._neg_view(-state["lr_ema"])
    before = state["lr_ema"].item()
    train(optimizer, params, 1)
    assert state["lr_ema"].item() > before > 0


def test_everyone_who_shares_memory_is_told():
    t = torch.zeros(10)
    found = overlaps([t[5:6], t[1:2], t, t[2:2], torch.zeros(3)])
    assert {k for pair in found for k in pair} == {0, 1, 2}


def test_two_that_share_memory_are_told_beside_one_that_has_stepped_there_before():
    buffer = torch.zeros(16)
    params = [torch.nn.Parameter(torch.zeros(8)) for _ in range(3)]
    optimizer = fusedstep.LaProp(params)
    train(optimizer, params, 1)
    for p, at in zip(params, (0, 4, 6), strict=True):
        p.data = buffer[at : at + 8]
    params[1].grad, before = None, buffer.clone()
    with pytest.raises(ValueError, match="parameter 0 and .*parameter 2 share memory"):
        optimizer.step()
    assert torch.equal(buffer, before)


def test_a_parameter_that_is_listed_twice_is_told():
    (p,) = params = model((3,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = fusedstep.MADGRAD([p, *params])
    give_gradients(params)
    with pytest.raises(ValueError, match="parameter 1 is parameter 0 again. List it once"):
        optimizer.step()


@pytest.fixture
def ways(monkeypatch):
    """Which way each block of Triton's kernels goes: constants of ``apply_block``, by name."""
    if reason := BACKENDS["triton"].why_not(torch.device("cpu")):
        pytest.skip(f"interpreted kernels show which way they go, but {reason}")
    from fusedstep.kernels import multi_tensor_apply

    apply_block, found = multi_tensor_apply.apply_block, []

    def watched(*given):
        of = dict(zip(apply_block.arg_names, given, strict=True))
        names = ("READS_GRAD", "READS_PARAM", "WHOLE", "WHOLE_GRAD")
        found.append({name: bool(getattr(of[name], "value", of[name])) for name in names})
        return apply_block(*given)

    monkeypatch.setattr(multi_tensor_apply, "apply_block", watched)
    return found


@pytest.mark.parametrize("cls", [fusedstep.LAMB, fusedstep.AvaGrad, fusedstep.AdamW])
def test_a_gradient_that_is_not_aligned_holds_up_no_other_column(cls, ways):
    """Nor does it hold up LAMB's second pass and AvaGrad's survey, which do not read it."""
    p = torch.nn.Parameter(torch.ones(4096))
    p.grad = torch.ones(4097)[1:]
    cls([p], backend="triton").step()
    for way in ways:
        norm = way["READS_GRAD"] and not way["READS_PARAM"]
        assert (way["WHOLE"], way["WHOLE_GRAD"]) == (not norm, not way["READS_GRAD"])
    assert ways


@pytest.mark.parametrize("place", ["grad", "param", "exp_avg"])
def test_a_column_8_bytes_beside_a_boundary_is_not_aligned(place, ways):
    """CPUs do not mind, but a GPU does."""
    beside = torch.ones(4098)[2:]
    p = torch.nn.Parameter(beside if place == "param" else torch.ones(4096))
    p.grad = beside if place == "grad" else torch.ones(4096)
    optimizer = fusedstep.AdamW([p], backend="triton")
    optimizer.step()
    if place == "exp_avg":
        optimizer.state[p]["exp_avg"] = beside
    ways.clear()
    optimizer.step()
    assert {(way["WHOLE"], way["WHOLE_GRAD"]) for way in ways} == {(place == "grad", False)}
