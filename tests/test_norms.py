"""Norms and means over groups that differ, and over parameters that take no part."""

import math
from functools import partial

import fusedstep
import pytest
import torch
from fusedstep import shards
from fusedstep.sums import Sums
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

from tests.distributed import distribute, give_parts, spawn, train_both, with_gradients
from tests.training import (
    assert_same,
    give_gradients,
    model,
    on_every_backend,
    parameters,
    root,
    stored,
    train,
)


def test_a_limit_of_one_group_alone_is_obeyed():
    found = []
    for other in (None, float("inf")):
        p, q = parameters([30, 40])
        groups = [{"params": [p], "max_grad_norm": other}, {"params": [q], "max_grad_norm": 0.1}]
        optimizer = fusedstep.AdamW(groups, eps=1.0)
        optimizer.step()
        found.append(torch.cat([p.detach(), q.detach(), optimizer.last_grad_norm[None]]))
    assert torch.equal(*found)


def test_a_norm_is_summed_without_those_that_have_no_gradient_yet(backend, device):
    found = []
    for idle in ([], [700]):
        params = parameters([300, 3000, *idle], device)
        for p in params[2:]:
            p.grad = None
        optimizer = fusedstep.AdamW(params, max_grad_norm=0.1, eps=1.0, backend=backend)
        optimizer.step()
        found.append(torch.cat([*(p.detach() for p in params[:2]), optimizer.last_grad_norm[None]]))
    assert torch.equal(*found)


@pytest.mark.parametrize("name, value", [("eps", 0.5), ("skip_zero_second_moment", True)])
def test_avagrads_mean_is_by_the_options_of_its_step(name, value, backend, device):
    """In the paper form the step before has summed it, by options that may have changed."""
    (p,), (q,) = (parameters([300], device) for _ in range(2))
    a = fusedstep.AvaGrad([p], backend=backend, eps=0.1)
    p.grad[:100] = 0.0
    a.step()
    with torch.no_grad():
        q.copy_(p)
    q.grad = p.grad.clone()
    a.param_groups[0][name] = value
    b = fusedstep.AvaGrad([q], backend=backend, **{"eps": 0.1, name: value})
    b.load_state_dict(a.state_dict())
    a.step()
    b.step()
    assert torch.equal(p, q)


def test_the_square_of_a_float64_is_rounded_before_it_is_added(backend, device):
    """Elements 0 and 1024 are terms of one lane; fused, product and sum would round once."""
    (p,) = parameters([2048], device, (torch.float64,))
    p.grad.zero_()
    p.grad[0], p.grad[1024] = 1.0, 1.3
    optimizer = fusedstep.AdamW([p], max_grad_norm=1.0, backend=backend)
    optimizer.step()
    assert optimizer.last_grad_norm == root(1.0 + 1.3 * 1.3)


def test_terms_1024_chunks_apart_are_added_before_all_others(backend, device):
    """With half the lanes of the law, each would be added to 2^56 alone, and lost."""
    params = parameters([1] * 1537, device)
    gradients = {0: 0.0, 512: 0.4, 1536: 0.4}  # 1 / (|g| + eps): 2^28, 2.5, 2.5
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, gradients[i]) if i in gradients else None
    options = {"betas": (0.9, 0.0), "eps": 2.0**-28, "form": "released"}
    optimizer = fusedstep.AvaGrad(params, backend=backend, **options)
    optimizer.step()
    optimizer.step()
    assert optimizer.param_groups[0]["eta_sq_sum"].tolist() == [2.0**56 + 16, 3]


@pytest.mark.parametrize("value, want", [(0.0, [9.0, 9.0]), (1e30, [0.0, 9.0])], ids=str)
def test_a_mean_stays_only_where_no_coordinate_is_counted(value, want, backend, device):
    """Not also where the sum is 0, as it is for infinite second moments."""
    (p,) = parameters([9], device)
    options = {"betas": (0.0, 0.0), "eps": 0.5, "form": "released"}
    optimizer = fusedstep.AvaGrad([p], backend=backend, skip_zero_second_moment=True, **options)
    for gradient in (0.5, value, 0.0):  # each is seen one step later
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    assert optimizer.param_groups[0]["eta_sq_sum"].tolist() == want


def test_avagrad_sees_a_changed_eps_where_there_is_no_gradient(backend, device):
    found = []
    for by, where in ((backend, device), ("reference", "cpu")):
        p, q = params = parameters([300, 40], where)
        optimizer = fusedstep.AvaGrad(params, backend=by, eps=0.1)
        optimizer.step()
        q.grad = None
        optimizer.param_groups[0]["eps"] = 0.5
        optimizer.step()
        found.append(p.detach().cpu())
    assert torch.equal(*found)


def test_a_survey_compares_no_tensors(monkeypatch):
    """That would wait for the device; a tensor that stays in its place calls for no survey."""
    (p,) = parameters([30])
    optimizer = fusedstep.AvaGrad([p], eps=0.5)
    monkeypatch.setattr(torch.Tensor, "__eq__", None)
    for eps in (torch.tensor(0.5), 0.5, torch.tensor(0.5)):
        optimizer.step()
        optimizer.param_groups[0]["eps"] = eps
    optimizer.step()
    assert len(optimizer._plan.rounds(optimizer)) == 1, "without a survey"


def test_sums_of_a_checkpoint_that_was_cast_are_read_as_they_are():
    found = []
    for cast in (torch.Tensor.double, torch.Tensor.float):
        (p,) = parameters([30])
        optimizer = fusedstep.AvaGrad([p], form="released")
        optimizer.step()
        optimizer.param_groups[0]["eta_sq_sum"] = cast(torch.tensor([50.0, 10.0]))
        optimizer.step()
        found.append(torch.cat([p.detach(), optimizer.param_groups[0]["eta_sq_sum"]]))
    assert torch.equal(*found)


@on_every_backend
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_step_whose_norm_is_not_finite_is_skipped(max_grad_norm, cls, backend, device):
    options = {"max_grad_norm": max_grad_norm, "skip_nonfinite": True}
    params, others = model(device=device), model()
    optimizer = cls(params, backend=backend, **options)
    unskipped = cls(others, backend="reference", max_grad_norm=max_grad_norm)
    train(optimizer, params, 1)
    for bad in (math.nan, math.inf, -math.inf):
        want = stored(optimizer, params)
        params[-1].grad.view(-1)[-1] = bad
        optimizer.step()
        assert not optimizer.last_grad_norm.isfinite()
        assert_same(stored(optimizer, params), want)
    train(optimizer, params, 1, seed=1)
    train(unskipped, others, 2)
    assert_same(stored(optimizer, params), stored(unskipped, others))


@pytest.mark.parametrize(
    "bad, found_inf, skips",
    [(0.0, 1.0, True), (math.nan, 0.0, True), (math.nan, None, True), (1e30, 0.0, False)],
)
def test_a_scalers_flag_skips_too(bad, found_inf, skips, backend, device):
    """The square of 1e30 overflows float32, but the norm is finite."""
    (p,) = params = parameters([30], device)
    optimizer = fusedstep.AdamW(params, backend=backend, skip_nonfinite=True)
    before, p.grad[7] = p.detach().clone(), bad
    if found_inf is not None:
        optimizer.found_inf = torch.tensor([[found_inf]], device=device)
    optimizer.step()
    assert torch.equal(p, before) is skips
    optimizer.found_inf, p.grad[7] = None, 1.0  # the flag is not remembered
    optimizer.step()
    assert optimizer.state[p]["step"] == 2 - skips


def test_whether_bad_steps_are_skipped_may_be_assigned(backend, device):
    (p,) = params = parameters([30], device)
    optimizer = fusedstep.AdamW(params, backend=backend)
    assert optimizer.last_grad_norm is None
    for skips in (False, True, False):
        optimizer.skip_nonfinite = skips
        p.grad[0] = 0.0 if optimizer.state[p].get("step", 0) == 0 else math.nan
        optimizer.step()
    assert optimizer.state[p]["step"] == 2
    assert p[0].isnan() and p[1:].isfinite().all()


def what_one_process_finds_skips_the_step_of_all():
    for bad in 0, 1:  # of the second each process has all
        whole = with_gradients((4,), (3,))
        whole[bad].grad[2] = math.nan
        params = distribute(whole, init_device_mesh("cpu", (2,)), [[Shard(0)], None])
        give_parts(params, whole)
        optimizer = fusedstep.AdamW(params, skip_nonfinite=True)
        optimizer.step()
        assert optimizer.state[params[0]]["step"] == optimizer.state[params[1]]["step"] == 0


def test_what_one_process_finds_skips_the_step_of_all():
    spawn(what_one_process_finds_skips_the_step_of_all)


@pytest.mark.parametrize(
    "cls, options",
    [
        (fusedstep.AvaGrad, {}),
        (fusedstep.AvaGrad, {"form": "released"}),
        (fusedstep.LAMB, {}),
        (fusedstep.AdamW, {"max_grad_norm": 0.5}),
    ],
)
def test_kernels_write_sums_of_parts_and_read_joined_ones(
    cls, options, backend, device, alone, monkeypatch
):
    join, found = Sums.join, []

    def join_with_another(sums):
        """As if another process held as much."""
        for result in sums.results:
            result.mul_(2)
        join(sums)
        for result in sums.results:
            result.div_(2)

    monkeypatch.setattr(shards, "axes", lambda p: (shards.Axis(alone, 0),))
    monkeypatch.setattr(Sums, "join", join_with_another)
    for by, where in ((backend, device), ("reference", "cpu")):
        whole = model((300,), (2000,), device=where)
        mesh = alone if where == "cpu" else init_device_mesh(where, (1,))
        params = distribute(whole, mesh, [[Shard(0)], [Shard(0)]])
        optimizer = cls(params, backend=by, **options)
        for t in range(3):
            give_gradients(whole, t)
            give_parts(params, whole)
            optimizer.step()
        found.append(torch.cat([p.detach().to_local().cpu() for p in params]))
    assert torch.equal(*found)


def test_to_clip_at_0_is_refused_with_what_switches_clipping_off():
    for zero in (0, 0.0):
        with pytest.raises(ValueError, match="max_grad_norm is 0.*Pass None, which clips nothing"):
            fusedstep.LAMB(model(), max_grad_norm=zero)


def a_part_of_zeros_has_no_share_in_a_mean():
    """Though it had one in the step before; a NaN has, and makes NaNs of all in the next step."""

    def first_half(params, seed):
        last = torch.nan if seed == 4 else float(seed == 0)
        params[0].grad = torch.tensor([3.0, 3.0, 0.0, last])

    def nobody(params, seed):
        params[0].grad = torch.full((4,), 3.0 * (seed != 1))

    whole = model((4,))
    params = distribute(whole, init_device_mesh("cpu", (2,)), [[Shard(0)]])
    options = {"betas": (0.0, 0.0), "eps": 1.0, "skip_zero_second_moment": True}
    for steps, give in (4, nobody), (4, first_half), (6, first_half):
        train_both(partial(fusedstep.AvaGrad, **options), params, whole, steps, give)
    assert whole[0].isnan().all()


def test_a_part_of_zeros_has_no_share_in_a_mean():
    spawn(a_part_of_zeros_has_no_share_in_a_mean)
