"""What only a GPU can show: launches, copies, synchronisations, streams. Bits are in test_bits."""

import fusedstep
import pytest
import torch
from fusedstep import testing

from tests.conftest import TESTED_BACKENDS, device_of

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
    params, optimizer = warm(gpu_backend, cls)
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


def test_a_step_needs_no_memory_to_speak_of(gpu_backend):
    params, optimizer = warm(gpu_backend)
    fresh_gradients(params)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 1 << 20
