"""Backends under test, named once; the axes of the bit matrix as markers."""

import os
import sys
from functools import cached_property

import torch

from tests import emulation

# Read when the kernels are defined, so before anything imports them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if emulation.SANITIZERS:
    sys.modules["fusedstep._native"] = emulation.load()

import pytest
import torch.distributed as dist
from fusedstep import native, testing, verify
from fusedstep.backends import (
    CpuBackend,
    CudaBackend,
    available_backends,
    register,
    why_unavailable,
)
from torch.distributed.device_mesh import init_device_mesh


class EmulatedCuda(CudaBackend):
    """The CUDA kernels' own source, compiled by the C++ compiler and run on CPU tensors."""

    name = "cuda-emulated"
    module = cached_property(lambda self: emulation.load())  # it is built when it is first needed

    def __init__(self):
        pass

    def why_not(self, device):
        return None if device.type == "cpu" else "the emulation updates tensors on cpu"

    def apply(self, launch, work):
        self.enqueue(launch, work, stream=0)


def device_of(backend: str) -> str:
    return "cpu" if backend == "reference" else verify.device_of(backend)


def _register() -> list[str]:
    if CpuBackend().module is None:
        raise pytest.UsageError(f"fusedstep is not built: {CpuBackend().absent}")
    names = [name for name in available_backends() if name != "reference"]
    for level in CpuBackend().module.cpu_levels()[:-1]:
        backend = CpuBackend(level=level)
        backend.name = f"cpu-{level}"
        register(backend)
        names.append(backend.name)
    register(EmulatedCuda())
    return [*names, EmulatedCuda.name]


TESTED_BACKENDS = _register()


def pytest_addoption(parser):
    parser.addoption(
        "--full-matrix", action="store_true", help="every combination on slow backends too"
    )


def pytest_report_header():
    absent = {name: why for name, why in why_unavailable().items() if why is not None}
    old = [mode.id for mode in testing.every_mode() if not mode.supported]
    return [
        f"fusedstep backends under test: {', '.join(TESTED_BACKENDS)}",
        *(f"fusedstep backend not tested: {name}: {why}" for name, why in absent.items()),
        *(f"fusedstep dtypes not tested: {mode}: this torch is older than 2.10" for mode in old),
    ]


def pytest_configure(config):
    rules = {case.cls.rule for case in testing.CASES} | {
        case.cls.__name__.lower() for case in testing.CASES
    }
    for name in [*rules, *(m.id for m in testing.MODES), *testing.SHAPES, *TESTED_BACKENDS]:
        config.addinivalue_line("markers", f"{name.replace('-', '_')}: an axis of the bit matrix")


@pytest.fixture(params=TESTED_BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture
def device(backend) -> str:
    return device_of(backend)


@pytest.fixture(params=testing.CASES, ids=lambda case: case.id)
def case(request) -> testing.Case:
    return request.param


@pytest.fixture(params=["native", "python"])
def native_or_python(request, monkeypatch):
    """The host's checks by native code, and in Python, as where it is not built."""
    if request.param == "python":
        monkeypatch.setattr(native, "module", None)


@pytest.fixture
def alone():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()
