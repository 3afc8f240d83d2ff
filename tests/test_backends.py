"""Which backend serves a device, and why another does not."""

import contextlib
import copy
import sys
import threading
import time
from types import SimpleNamespace

import fusedstep
import psutil
import pytest
import torch
from fusedstep.backends import BACKENDS, CpuBackend, CudaBackend, choose

from tests.training import give_gradients, model, train


@pytest.mark.parametrize("backend", ["nothing", "cuda ", None])
def test_an_unknown_backend(backend):
    params = model()
    give_gradients(params)
    with pytest.raises(ValueError, match="backend is .*; choose one of 'auto', 'cuda'"):
        fusedstep.AdamW(params, backend=backend).step()


def test_a_backend_that_cannot_serve_the_device_says_why():
    params = model()
    give_gradients(params)
    with pytest.raises(RuntimeError, match=r"no backend can update parameters on cpu: cuda: "):
        fusedstep.AdamW(params, backend="cuda").step()


@pytest.fixture
def a_gpu(monkeypatch):
    """Let the backends find a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(BACKENDS["triton"], "engine", SimpleNamespace(INTERPRETED=False))
    return torch.device("cuda", 0)


def test_a_gpu_that_the_build_cannot_run_on_is_left_to_triton(a_gpu, monkeypatch):
    reason = "cudaFuncGetAttributes: no kernel image is available for execution on the device"
    built = SimpleNamespace(cuda_kernel=None, cuda_why_not=lambda: reason)
    monkeypatch.setitem(BACKENDS, "cuda", CudaBackend(built))
    assert choose("auto", a_gpu).name == "triton"
    with pytest.raises(RuntimeError, match=f"does not run on NVIDIA T4 .{reason}.; run `FUSED"):
        choose("cuda", a_gpu)
    built.cuda_why_not = lambda: None
    assert choose("auto", a_gpu).name == "cuda"


def test_a_torch_for_gpus_of_amd_is_refused(a_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    built = SimpleNamespace(cuda_kernel=None, cuda_why_not=lambda: None)
    monkeypatch.setitem(BACKENDS, "cuda", CudaBackend(built))
    with pytest.raises(RuntimeError, match="cuda: it needs an NVIDIA GPU.*triton: it needs an"):
        choose("auto", a_gpu)


def test_a_gpu_without_ordered_atomics_is_refused(a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(RuntimeError, match="triton: it needs a GPU of compute capability 7.0"):
        choose("triton", a_gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert choose("triton", a_gpu).name == "triton"


def test_what_ran_a_step_is_known_after_it(backend, device):
    params = model(device=device)
    optimizer = fusedstep.AdamW(params, backend=backend)
    assert optimizer.backends_in_use == {}
    train(optimizer, params, 1)
    for _ in range(2):
        assert optimizer.backends_in_use == {str(params[0].device): backend}
        optimizer.load_state_dict(optimizer.state_dict())  # a step will be planned anew
    assert copy.deepcopy(optimizer).backends_in_use == {}


def test_every_instruction_set_has_kernels_of_its_own():
    module = CpuBackend().module
    kernels = [module.cpu_kernel("adamw", 0, False, level) for level in module.cpu_levels()]
    assert kernels and len({id(kernel) for kernel in kernels}) == len(kernels)


def test_other_threads_run_while_a_kernel_does(monkeypatch):
    """Otherwise threads that load data would wait for every step."""
    params = model((1 << 21,))
    give_gradients(params)
    optimizer, apply, interval = fusedstep.AdamW(params), CpuBackend.apply, sys.getswitchinterval()
    turns, during, done = [], [], threading.Event()

    def run():
        while not done.is_set():
            turns.append(1)
            time.sleep(0)  # lets others run

    def counted(backend, launch, work):
        before = len(turns)
        apply(backend, launch, work)
        during.append(len(turns) - before)

    monkeypatch.setattr(CpuBackend, "apply", counted)
    other = threading.Thread(target=run)
    other.start()
    sys.setswitchinterval(60.0)  # a thread lets others run only when it is about to wait
    try:
        for _ in range(10):
            optimizer.step()
    finally:
        sys.setswitchinterval(interval)
        done.set()
        other.join()
    assert any(during)


def test_a_step_runs_on_as_many_threads_as_torch():
    """Each of Python's threads has workers of its own, which begin when they are first needed."""
    params, process, begun = model((200_000,)), psutil.Process(), []
    give_gradients(params)
    optimizer, threads = fusedstep.AdamW(params), torch.get_num_threads()
    optimizer.step()  # makes states, on other threads

    def run():
        torch.set_num_threads(3)
        before = process.num_threads()
        optimizer.step()
        begun.append(process.num_threads() - before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    torch.set_num_threads(threads)
    assert begun == [2]
