"""Sums of squares (N7) and what is made of them: clipping, AvaGrad's mean, LAMB's ratios."""

import fusedstep
import numpy as np
import pytest
import torch
from fusedstep import tensor_checks
from fusedstep.reference.numerics import tree
from fusedstep.shards import Axis
from fusedstep.sums import CHUNK, Norm

from tests.conftest import TESTED_BACKENDS, device_of
from tests.training import assert_same, name_of, parameters, stored

NORMED = [
    (fusedstep.AvaGrad, {}),
    (fusedstep.AvaGrad, {"form": "released"}),
    (fusedstep.LAMB, {}),
    (fusedstep.MAdam, {"max_grad_norm": 1.0}),
]
each_normed = pytest.mark.parametrize("cls, options", NORMED, ids=name_of)


@pytest.mark.parametrize("n", [0, 1, 3, 1023, 1024, 1025, 5000, CHUNK])
def test_the_tree_is_the_one_of_the_law(n):
    values = np.random.default_rng(0).lognormal(0, 9, n)
    lanes = [0.0] * 1024
    for i, value in enumerate(values.tolist()):
        lanes[i % 1024] += value
    half = 512
    while half:
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        half //= 2
    assert tree(values) == lanes[0]
    assert tree(values) == pytest.approx(np.sum(values))


def after_steps(backend, cls, options, sizes, dtypes=(torch.float32,), steps=3, every=1):
    """What is stored after some steps; of the parameters, one in ``every`` has a gradient."""
    params = parameters(sizes, device_of(backend), dtypes)
    for i, p in enumerate(params):
        p.grad = p.grad if i % every == 0 else None
    half = len(params) // 2
    groups = [{"params": params[:half]}, {"params": params[half:], "lr": 0.02}]
    optimizer = cls(groups, backend=backend, **options)
    for t in range(steps):
        params[0].grad = None if t == 1 else torch.ones_like(params[0])
        optimizer.step()
    found = stored(optimizer, params)
    if optimizer.last_grad_norm is not None:
        found["norm"] = optimizer.last_grad_norm
    return found


@each_normed
@pytest.mark.parametrize("backend", TESTED_BACKENDS)
def test_a_sum_may_span_launches(backend, cls, options):
    """Parameters of three dtypes are three launches; their squares are one sum."""
    sizes = [5, 700, CHUNK + 3, 33, 1, 2 * CHUNK, 0, 77]
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    got = after_steps(backend, cls, options, sizes, dtypes)
    assert_same(got, after_steps("reference", cls, options, sizes, dtypes))


@each_normed
@pytest.mark.parametrize("backend", TESTED_BACKENDS)
def test_more_chunks_than_lanes(backend, cls, options):
    """Chunks go round the lanes more than twice, also those of parameters that take no part."""
    sizes = [1 + i % 5 for i in range(2500)]
    every = 1 if backend.startswith("cpu") else 100  # a program each, interpreted or emulated
    got = after_steps(backend, cls, options, sizes, steps=2, every=every)
    want = after_steps("reference", cls, options, sizes, steps=2, every=every)
    assert_same(got, want)


@each_normed
def test_threads_do_not_matter(cls, options):
    sizes = [5 * CHUNK + 17, 3, 2 * CHUNK]
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(after_steps("cpu", cls, options, sizes))
    finally:
        torch.set_num_threads(threads)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_the_norm_is_there_to_log(backend, device):
    (p, q) = parameters([3000, 50], device)
    norm = torch.cat([p.grad, q.grad]).double().norm()
    before = p.grad.clone()
    optimizer = fusedstep.LaProp([p, q], max_grad_norm=0.5, backend=backend)
    assert optimizer.last_grad_norm is None
    optimizer.step()
    assert torch.equal(p.grad, before)
    assert (optimizer.last_grad_norm.dtype, optimizer.last_grad_norm.shape) == (torch.float64, ())
    assert optimizer.last_grad_norm.device.type == device
    torch.testing.assert_close(optimizer.last_grad_norm, norm, rtol=1e-14, atol=0)
    optimizer.param_groups[0]["max_grad_norm"] = None
    optimizer.step()
    torch.testing.assert_close(optimizer.last_grad_norm, norm, rtol=1e-14, atol=0)


def test_an_infinite_limit_measures_and_never_clips(backend, device):
    (p,), (q,) = (parameters([3000], device) for _ in range(2))
    fusedstep.MAdam([p], backend=backend).step()
    optimizer = fusedstep.MAdam([q], backend=backend, max_grad_norm=float("inf"))
    optimizer.step()
    assert torch.equal(p, q) and float(optimizer.last_grad_norm) > 0


def test_a_limit_may_be_a_tensor_and_change(backend, device):
    (p,), (q,) = (parameters([300], device) for _ in range(2))
    limit = torch.tensor(2.0, device=device)
    a = fusedstep.AdamW([p], backend=backend, max_grad_norm=limit)
    b = fusedstep.AdamW([q], backend=backend, max_grad_norm=2.0)
    for value in (2.0, 0.5):
        limit.fill_(value)
        b.param_groups[0]["max_grad_norm"] = value
        a.step()
        b.step()
    assert torch.equal(p, q)


def test_a_limit_set_later_is_obeyed(backend, device):
    (p,), (q,) = (parameters([300], device) for _ in range(2))
    a = fusedstep.AdamW([p], backend=backend, eps=1.0)
    b = fusedstep.AdamW([q], backend=backend, eps=1.0)
    a.step()
    b.step()
    a.param_groups[0]["max_grad_norm"] = 0.1
    a.step()
    b.step()
    assert a.last_grad_norm is not None and not torch.equal(p, q)


@each_normed
def test_a_skipped_step_leaves_the_sums(cls, options, backend, device):
    def play(skip):
        params = parameters([3000, 20], device)
        optimizer = cls(params, backend=backend, **options)
        for t in range(4):
            for p in params:
                p.grad = torch.full_like(p, torch.inf if t == skip else 0.1 + t * (t != skip))
            optimizer.found_inf = torch.tensor(float(t == skip), device=device)
            if t != 1 or skip == 1:
                optimizer.step()
        return [p.detach().cpu() for p in params]

    for a, b in zip(play(1), play(None), strict=True):
        assert torch.equal(a, b)


def test_avagrads_mean_of_nobody_is_not_that_of_the_step_before(backend, device):
    """Where no second moment is left that would count, a loaded optimizer has no other mean."""
    (p,), (q,) = (parameters([300], device) for _ in range(2))
    options = {"betas": (0.9, 0.0), "eps": 1e-3, "skip_zero_second_moment": True}
    a, b = (fusedstep.AvaGrad([x], backend=backend, **options) for x in (p, q))
    for scale in (1.0, 0.0):
        p.grad.mul_(scale)
        a.step()
    assert not a.state[p]["exp_avg_sq"].any()
    with torch.no_grad():
        q.copy_(p)
    b.load_state_dict(a.state_dict())
    p.grad.copy_(q.grad)
    a.step()
    b.step()
    assert torch.equal(p, q)


def refused(match, make):
    with pytest.raises(ValueError, match=match):
        make()


def test_forms_of_avagrad_do_not_mix():
    p, q = parameters([3, 4])
    groups = [{"params": [p]}, {"params": [q], "form": "released"}]
    before = p.detach().clone()
    refused("groups have different forms", fusedstep.AvaGrad(groups).step)
    assert torch.equal(p, before)


def test_momentum_of_madgrad_does_not_come_or_go():
    (p,) = parameters([3])
    optimizer = fusedstep.MADGRAD([p], momentum=0.0)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    refused("momentum is 0.9, but the parameter has stepped without momentum", optimizer.step)


def test_a_parameter_of_madgrad_stays_with_its_momentum():
    p, q = parameters([3, 3])
    optimizer = fusedstep.MADGRAD([{"params": [p], "momentum": 0.0}, {"params": [q]}])
    optimizer.step()
    first, second = (group["params"] for group in optimizer.param_groups)
    second.append(first.pop())
    refused("group 1, parameter 1: momentum is 0.9, .* without momentum", optimizer.step)


def test_a_norm_over_two_devices_is_refused():
    p, q = torch.ones(3), torch.ones(3, device="meta")
    tensor_checks.one_device("max_grad_norm", [(0, p), (1, q)])
    with pytest.raises(NotImplementedError, match="max_grad_norm takes a norm .* cpu and meta"):
        tensor_checks.one_device("max_grad_norm", [(0, p), (0, q)])


def test_the_norm_of_a_skipped_step_is_told_too(backend, device):
    (p,) = parameters([30], device)
    optimizer = fusedstep.AdamW([p], max_grad_norm=1.0, backend=backend)
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.full_like(p, torch.inf)
    optimizer.found_inf = torch.tensor(1.0, device=device)
    optimizer.step()
    assert torch.equal(p, before) and float(optimizer.last_grad_norm) == torch.inf


def test_a_group_made_from_anothers_options_has_its_own_mean():
    p, q = parameters([30, 40])
    optimizer = fusedstep.AvaGrad([p], form="released")
    optimizer.step()
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [q]})
    optimizer.step()
    first, second = (group["eta_sq_sum"] for group in optimizer.param_groups)
    assert [first[1], second[1]] == [30, 40]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_mean_that_is_exchanged_or_removed_is_that_of_the_next_step(backend, which):
    def moved(change):
        p, q = parameters([30, 40])
        groups = [{"params": [p]}, {"params": [q]}]
        optimizer = fusedstep.AvaGrad(groups, form="released", backend=backend)
        for _ in range(3):
            optimizer.step()
        group = optimizer.param_groups[which]
        change(group)
        optimizer.step()
        return torch.cat([p.detach(), q.detach(), group["eta_sq_sum"]])

    new = torch.tensor([50.0, 10.0], dtype=torch.float64)
    want = moved(lambda group: group["eta_sq_sum"].copy_(new))
    assert torch.equal(moved(lambda group: group.update(eta_sq_sum=new)), want)
    assert torch.equal(moved(lambda group: setattr(group["eta_sq_sum"], "data", new.clone())), want)
    removed = moved(lambda group: group.pop("eta_sq_sum"))
    assert torch.equal(removed, moved(lambda group: group["eta_sq_sum"].zero_()))
    assert not torch.equal(removed, want)


@pytest.mark.parametrize("backend", [*TESTED_BACKENDS, "reference"])
def test_after_loading_a_mean_counts_who_has_no_gradient(backend):
    def stepped(load):
        params = parameters([30, 5000], device_of(backend))
        optimizer = fusedstep.AvaGrad(params, backend=backend)
        optimizer.step()
        if load:
            optimizer.load_state_dict(optimizer.state_dict())
        params[1].grad = None
        optimizer.step()
        return stored(optimizer, params)

    assert_same(stepped(load=True), stepped(load=False))


def test_madgrads_k_is_that_of_parameters_in_use():
    a, b, c = parameters([3, 4, 5])
    optimizer = fusedstep.MADGRAD([a, b])
    optimizer.step()
    optimizer.param_groups[0]["params"].remove(a)
    for _ in range(5):
        optimizer.step()
    optimizer.add_param_group({"params": [c]})
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (a, b, c)] == [1, 7, 7]


def test_many_stretches_of_a_norm_are_added_in_few_operations(alone):
    """As where some parameters of each layer are sharded and some are whole."""
    axes = [(), (Axis(alone, 0),)] * 50
    norm = Norm([5] * 100, axes, range(100), torch.device("cpu"))
    for i, result in enumerate(norm.results):
        result.fill_(i)
    with torch.profiler.profile() as profile:
        norm.join()
    assert norm.total.item() == sum(range(100))
    additions = [each for each in profile.key_averages() if each.key.startswith("aten::add")]
    assert sum(each.count for each in additions) == 7
