"""Backends: which can run a launch, and how. One chosen by name never falls back to another."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch

from . import native
from .launch import Launch, Pass, address_of
from .reference_backend import ReferenceBackend


@runtime_checkable
class Backend(Protocol):
    """What runs the passes of a launch. Inherit it for one of your own: docs/kernels.md."""

    name: str
    takes_tensors: bool = False  # whether ``apply`` reads ``launch.entries``; else addresses only

    @abstractmethod
    def why_not(self, device: torch.device) -> str | None:
        """The reason why this backend cannot serve tensors on ``device``; None if it can."""

    @abstractmethod
    def prepare(self, launch: Launch, work: Pass) -> None:
        """Find the kernel of one pass, while a step is planned: an error then changes nothing."""

    @abstractmethod
    def apply(self, launch: Launch, work: Pass) -> None:
        """Run one pass over the tensors of a launch."""


def _no_gpu() -> str | None:
    """Why there is no GPU that kernels could run on; None if there is one."""
    if torch.version.hip is not None:
        return "it needs an NVIDIA GPU, and this torch is built for AMD's"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


class _Native(Backend):
    """What the two compiled backends share: the module and its Launch structs."""

    def __init__(self, module=None):
        self.module = module or native.module
        self.absent: str | None = None
        if self.module is None:
            self.absent = (
                f"fusedstep._native is not built ({native.why_absent}); install a C++ compiler "
                f"(Debian: apt install g++) and run `pip install .` again"
            )

    def kernel(self, rule: str, variant: int, float64: bool):
        """The module's kernel; RuntimeError where it has none."""
        raise NotImplementedError

    def prepare(self, launch: Launch, work: Pass) -> None:
        kernel, struct = self.kernel(work.rule, work.variant, launch.float64), self.module.Launch()
        launch.check_columns(work.rule, (kernel.hypers, kernel.states, kernel.carried))
        for field, value in launch.fields(work).items():
            setattr(struct, field, value)
        struct.grad_norm_sq = address_of(launch.grad_norm_sq(work))
        work.prepared = kernel, struct

    def _prepared(self, launch: Launch, work: Pass):
        """The kernel and its struct, in which only AMP's pointers vary."""
        kernel, struct = work.prepared
        struct.grad_scale = address_of(launch.grad_scale)
        struct.found_inf = address_of(launch.skip_flag(work))
        return kernel, struct


class CpuBackend(_Native):
    """The C++ kernels on the CPU, at the widest instruction set this processor has."""

    name = "cpu"

    def __init__(self, level: str | None = None):
        super().__init__()
        self.level = level or (self.module.cpu_levels()[-1] if self.module else None)

    def why_not(self, device: torch.device) -> str | None:
        if self.absent:
            return self.absent
        return None if device.type == "cpu" else f"it updates tensors on cpu, not on {device.type}"

    def apply(self, launch: Launch, work: Pass) -> None:
        kernel, struct = self._prepared(launch, work)
        kernel.apply(struct, torch.get_num_threads())

    def kernel(self, rule: str, variant: int, float64: bool):
        return self.module.cpu_kernel(rule, variant, float64, self.level)


class CudaBackend(_Native):
    """The CUDA C++ kernels, on the current stream of the tensors' device."""

    name = "cuda"

    def why_not(self, device: torch.device) -> str | None:
        if absent := self.absent or _no_gpu():
            return absent
        if not hasattr(self.module, "cuda_kernel"):
            return (
                "this build has no CUDA kernels; install the CUDA toolkit (nvcc) and run "
                "`FUSEDSTEP_CUDA=ON pip install .`"
            )
        if device.type != "cuda":
            return f"it updates tensors on cuda, not on {device.type}"
        with torch.cuda.device(device):
            reason = self.module.cuda_why_not()
        return reason and (
            f"this build does not run on {torch.cuda.get_device_name(device)} ({reason}); run "
            f"`FUSEDSTEP_CUDA=ON pip install .` on its machine, with a CUDA toolkit that its "
            f"driver supports"
        )

    def apply(self, launch: Launch, work: Pass) -> None:
        with torch.cuda.device(launch.device):
            self.enqueue(launch, work, torch.cuda.current_stream().cuda_stream)

    def enqueue(self, launch: Launch, work: Pass, stream: int) -> None:
        kernel, struct = self._prepared(launch, work)
        kernel.apply(struct, stream)

    def kernel(self, rule: str, variant: int, float64: bool):
        return self.module.cuda_kernel(rule, variant, float64)


class TritonBackend(Backend):
    """The Triton kernels; under ``TRITON_INTERPRET=1`` also on CPU tensors."""

    name = "triton"

    @cached_property  # when it is needed: importing triton takes several times as long as all else
    def engine(self) -> Any:
        return importlib.import_module("fusedstep.kernels.enqueue")

    def why_not(self, device: torch.device) -> str | None:
        try:
            interpreted = self.engine.INTERPRETED
        except ModuleNotFoundError as error:
            return f"{error}; run `pip install triton`"
        except ImportError as error:  # which names its remedy itself
            return str(error)
        if device.type not in ("cuda", "cpu"):
            return f"it updates tensors on cuda, not on {device.type}"
        if device.type == "cpu":
            remedy = "start with TRITON_INTERPRET=1 to interpret it"
            return None if interpreted else f"it updates tensors on cuda; {remedy}"
        if interpreted:
            return "TRITON_INTERPRET is set: the interpreter reads host memory; unset it"
        if reason := _no_gpu():
            return reason
        old = torch.cuda.get_device_capability(device) < (7, 0)  # without atomics that order memory
        return "it needs a GPU of compute capability 7.0 or newer" if old else None

    def prepare(self, launch: Launch, work: Pass) -> None:
        self.engine.prepare(launch, work)

    def apply(self, launch: Launch, work: Pass) -> None:
        self.engine.apply(launch, work)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (CudaBackend(), TritonBackend(), CpuBackend(), ReferenceBackend())
}
_OWN = ("auto", *BACKENDS)


def register(backend: Backend) -> None:
    """Make a backend of your own known: optimizers take its ``name`` as ``backend=``. One that was
    registered under the same name before serves only steps that are planned already.

    Raises:
        TypeError: it is no object with a name and all that :class:`Backend` has.
        ValueError: the name is ``"auto"`` or that of one of fusedstep's backends.
    """
    good = isinstance(backend, Backend) and not isinstance(backend, type)
    if not (good and isinstance(getattr(backend, "name", None), str)):
        raise TypeError(
            f"{backend!r} is no backend. Register an object, not its class, that inherits "
            f"fusedstep.backends.Backend and has a name."
        )
    if backend.name in _OWN:
        raise ValueError(
            f"the name {backend.name!r} is taken: fusedstep has {', '.join(_OWN)}. Give your "
            f"backend another one."
        )
    BACKENDS[backend.name] = backend


def choose(name: str, device: torch.device) -> Backend:
    """The backend of that name, or for ``"auto"`` the fastest that serves ``device``.

    Raises:
        RuntimeError: the backend cannot serve the device; the message has its reason.
    """
    if name != "auto" and name not in BACKENDS:  # it was, where the optimizer was pickled
        raise RuntimeError(
            f"backend {name!r} is not registered here. Import the module that registers it, or "
            f'assign `optimizer.backend = "auto"`.'
        )
    fastest = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
    names = fastest.get(device.type, ("cuda", "triton", "cpu")) if name == "auto" else (name,)
    reasons = {}
    for candidate in names:
        reasons[candidate] = BACKENDS[candidate].why_not(device)
        if reasons[candidate] is None:
            return BACKENDS[candidate]
    listed = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
    remedy = "" if name == "auto" else '. Move the parameters, or pass backend="auto"'
    raise RuntimeError(f"no backend can update parameters on {device}: {listed}{remedy}")


def available_backends() -> list[str]:
    """The backends that can serve a device of this machine: ``["cpu", "reference"]``."""
    return [name for name, reason in why_unavailable().items() if reason is None]


def why_unavailable() -> dict[str, str | None]:
    """Every backend, with the reason why it can serve no device of this machine, or None if it can.

    Returns:
        ``{"cuda": "torch finds no CUDA device", "triton": ..., "cpu": None, "reference": None}``
    """
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.insert(0, torch.device("cuda", torch.cuda.current_device()))
    result = {}
    for name, backend in BACKENDS.items():
        reasons = [backend.why_not(device) for device in devices]
        result[name] = None if None in reasons else reasons[0]
    return result
