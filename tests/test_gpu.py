"""What only a GPU can show: launches, copies, synchronisations, streams. Bits are in test_bits."""

import fusedstep
import pytest
import torch
import torch.distributed as dist
from fusedstep import shards, testing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from bench.device import Cuda
from tests.conftest import TESTED_BACKENDS, device_of
from tests.training import assert_same, every_class, stored

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device", allow_module_level=True)

GPU_BACKENDS = [name for name in TESTED_BACKENDS if device_of(name) == "cuda"]
pytestmark = pytest.mark.parametrize("gpu_backend", GPU_BACKENDS)


def groups(count=20, size=3000):
    params = [torch.nn.Parameter(torch.randn(size, device="cuda")) for _ in range(count)]
    half = count // 2
    return params, [{"params": params[:half], "weight_decay": 0.1}, {"params": params[half:]}]


def fresh_gradients(params):
    for p in params:
        p.grad = torch.randn_like(p)


def warm(gpu_backend, cls=fusedstep.MAdam, **options):
    params, two_groups = groups()
    optimizer = cls(two_groups, backend=gpu_backend, **options)
    for _ in range(2):
        fresh_gradients(params)
        optimizer.step()
    torch.cuda.synchronize()
    return params, optimizer


def test_states_that_go_to_the_host_free_the_gpus_memory(gpu_backend):
    _, optimizer = warm(gpu_backend)
    before, moved = torch.cuda.memory_allocated(), 0
    for state in optimizer.state.values():
        for name in list(state):
            moved += state[name].nbytes
            state[name] = state[name].cpu()
    assert before - torch.cuda.memory_allocated() >= moved > 0
    optimizer.step()
    assert {t.device.type for state in optimizer.state.values() for t in state.values()} == {"cuda"}


@pytest.mark.parametrize("cls", [fusedstep.LAMB, fusedstep.AdamW])
def test_what_is_frozen_and_on_the_host_takes_no_part(gpu_backend, cls):
    (frozen, *others), optimizer = warm(gpu_backend, cls)
    frozen.grad, frozen.data = None, frozen.data.cpu()
    fresh_gradients(others)
    optimizer.step()
    assert {launch.device.type for launch in optimizer._plan.launches} == {"cuda"}
    if cls is fusedstep.LAMB:
        norm = torch.cat([p.grad for p in others]).double().norm()
        torch.testing.assert_close(optimizer.last_grad_norm, norm, rtol=1e-6, atol=0)


KERNELS = [
    (fusedstep.MAdam, {}, 1),
    (fusedstep.AvaGrad, {}, 1),
    (fusedstep.AvaGrad, {"form": "released"}, 1),
    (fusedstep.AdamW, {"max_grad_norm": 1.0}, 2),
    (fusedstep.LAMB, {"max_grad_norm": None}, 2),
    (fusedstep.LAMB, {}, 3),
]


@pytest.mark.parametrize("cls, options, kernels", KERNELS)
def test_launches_and_at_most_one_copy(gpu_backend, cls, options, kernels):
    params, optimizer = warm(gpu_backend, cls, **options)
    fresh_gradients(params)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
    copies = [name for name in names if name.startswith("Memcpy")]
    assert len(copies) <= 1, names
    assert len(names) - len(copies) == kernels, names


@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.AvaGrad, fusedstep.LAMB])
def test_a_step_does_not_wait_for_the_device(gpu_backend, cls):
    params, optimizer = warm(gpu_backend, cls, skip_nonfinite=True)
    fresh_gradients(params)
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.grad_scale = torch.tensor(8.0, device="cuda")
    optimizer.found_inf = torch.tensor(0.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_on_a_side_stream_is_ordered(gpu_backend):
    case = testing.Case("madam", fusedstep.MAdam)
    want = testing.run(case, testing.MODES[0], "chunk", gpu_backend, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = testing.run(case, testing.MODES[0], "chunk", gpu_backend, "cuda")
    assert not testing.differences(got, want)


def test_tables_are_not_overwritten_while_another_stream_reads_them(gpu_backend):
    found = []
    for side in (torch.cuda.Stream(), None):
        torch.manual_seed(0)
        params, optimizer = warm(gpu_backend)
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            fresh_gradients(params)
            optimizer.step()
        optimizer._forget()
        sizes = [2**k for k in range(6, 18) for _ in range(9)]
        others = [torch.full((size,), -1, device="cuda") for size in sizes]  # takes freed memory
        torch.cuda.synchronize()
        assert all((other == -1).all() for other in others)
        found.append([p.detach().clone() for p in params])
    assert all(map(torch.equal, *found))


def test_a_step_needs_no_memory_to_speak_of(gpu_backend):
    params, optimizer = warm(gpu_backend)
    fresh_gradients(params)
    assert Cuda().peak_extra_bytes(optimizer.step) <= 1 << 20


@every_class
def test_graph_replays_equal_eager_steps_with_a_changing_lr(gpu_backend, cls):
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        options = {"max_grad_norm": 1.0, "skip_nonfinite": True, "capturable": True}
        params, optimizer = warm(gpu_backend, cls, **options)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for t in range(20):
            for p in params:
                p.grad.copy_(torch.randn(p.shape))
            for group in optimizer.param_groups:
                group["lr"].fill_(0.01 / (t + 1))
                group["weight_decay"].mul_(0.9)
            if t == 7:  # is skipped
                params[3].grad[5] = torch.nan
            graph.replay() if captured else optimizer.step()
        results.append(stored(optimizer, params))
    assert all(value.isfinite().all() for value in results[0].values())
    assert_same(*results)


def test_steps_between_replays_follow_their_own_gradients(gpu_backend):
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        params, optimizer = warm(gpu_backend, fusedstep.LaProp, capturable=True)
        static = [p.grad for p in params]
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for _ in range(3):
            for p, g in zip(params, static, strict=True):
                p.grad = g.copy_(torch.randn(p.shape))
            graph.replay() if captured else optimizer.step()
            fresh_gradients(params)
            optimizer.step()
        results.append(stored(optimizer, params))
    assert_same(*results)


def test_a_graph_with_a_number_in_it_is_refused(gpu_backend):
    _, optimizer = warm(gpu_backend)
    refused = pytest.raises(RuntimeError, match="is .*: a CUDA graph would keep this value")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@pytest.fixture
def mesh():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cls", [fusedstep.MAdam, fusedstep.LAMB, fusedstep.AvaGrad])
def test_parts_take_their_steps_without_waiting(gpu_backend, mesh, cls, monkeypatch):
    # one process shares nothing with others; it sums as if it did
    monkeypatch.setattr(shards, "axes", lambda p: (shards.Axis(mesh, 0),))

    def distributed(t):
        return DTensor.from_local(t.detach().clone(), mesh, [Shard(0)])

    whole, _ = groups()
    params = [torch.nn.Parameter(distributed(p)) for p in whole]
    options = {"weight_decay": 0.1, "max_grad_norm": 1.0, "backend": gpu_backend}
    of, optimizer = cls(whole, **options), cls(params, **options)
    for wait in ("default", "default", "error"):
        fresh_gradients(whole)
        for p, w in zip(params, whole, strict=True):
            p.grad = distributed(w.grad)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(wait)
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        of.step()
    found = stored(optimizer, params)
    found = {n: t.to_local() if isinstance(t, DTensor) else t for n, t in found.items()}
    assert_same(found, stored(of, whole))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds one CUDA device")
def test_parameters_on_another_device_are_stepped_there(gpu_backend):
    case = testing.Case("madam", fusedstep.MAdam)
    want = testing.run(case, testing.MODES[0], "chunk", gpu_backend, "cuda:0")
    stream = torch.cuda.Stream("cuda:1")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.cuda.device(0):
            got = testing.run(case, testing.MODES[0], "chunk", gpu_backend, "cuda:1")
            assert torch.cuda.current_device() == 0
    assert not testing.differences(got, want)
