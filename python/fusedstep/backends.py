"""Backends: who can run a launch, and how. No backend falls back to another silently."""

from __future__ import annotations

import importlib
import os
from typing import Protocol

import numpy as np
import torch

from .plan import Launch


class Backend(Protocol):
    name: str

    def why_not(self, device: torch.device) -> str | None:
        """The reason why this backend cannot serve tensors on ``device``; None if it can."""

    def apply(self, launch: Launch) -> None:
        """Run one launch: every tensor that has a gradient takes its step."""


def _import(module: str) -> tuple[object | None, str | None]:
    try:
        return importlib.import_module(module), None
    except ImportError as error:
        return None, str(error)


class _Native:
    """What the two compiled backends share: the module and its Launch structs."""

    name: str

    def __init__(self, module=None):
        self.module, self.absent = (module, None) if module else _import("fusedstep._native")
        if self.module is None:
            self.absent = (
                f"fusedstep._native is not built ({self.absent}); install a C++ compiler "
                f"(Debian: apt install g++) and run `pip install .` again"
            )

    def _prepare(self, launch: Launch, kernel):
        """The kernel and its struct, made once for a launch; only AMP's pointers vary."""
        if self.name not in launch.handles:
            struct = self.module.Launch()
            for field, value in launch.fields().items():
                setattr(struct, field, value)
            launch.handles[self.name] = (kernel(), struct)
        kernel, struct = launch.handles[self.name]
        struct.grad_scale = 0 if launch.grad_scale is None else launch.grad_scale.data_ptr()
        struct.found_inf = 0 if launch.found_inf is None else launch.found_inf.data_ptr()
        return kernel, struct


class CpuBackend(_Native):
    """The C++ kernels on the CPU, at the widest instruction set this processor has."""

    name = "cpu"

    def __init__(self, module=None, level: str | None = None):
        super().__init__(module)
        self.level = level or (self.module.cpu_levels()[-1] if self.module else None)

    def why_not(self, device: torch.device) -> str | None:
        if self.absent:
            return self.absent
        return None if device.type == "cpu" else f"it updates tensors on cpu, not on {device.type}"

    def apply(self, launch: Launch) -> None:
        kernel, struct = self._prepare(
            launch,
            lambda: self.module.cpu_kernel(launch.rule, launch.variant, launch.float64, self.level),
        )
        kernel.apply(struct, torch.get_num_threads())


class CudaBackend(_Native):
    """The CUDA C++ kernels, on the current stream of the tensors' device."""

    name = "cuda"

    def why_not(self, device: torch.device) -> str | None:
        if self.absent:
            return self.absent
        if not hasattr(self.module, "cuda_kernel"):
            return (
                "this build has no CUDA kernels; install the CUDA toolkit (nvcc) and run "
                "`FUSEDSTEP_CUDA=ON pip install .`"
            )
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        return (
            None if device.type == "cuda" else f"it updates tensors on cuda, not on {device.type}"
        )

    def stream(self, launch: Launch) -> tuple[int, int]:
        device = launch.device.index
        return device, torch.cuda.current_stream(device).cuda_stream

    def apply(self, launch: Launch) -> None:
        kernel, struct = self._prepare(
            launch, lambda: self.module.cuda_kernel(launch.rule, launch.variant, launch.float64)
        )
        kernel.apply(struct, *self.stream(launch))


class TritonBackend:
    """The Triton kernels; under ``TRITON_INTERPRET=1`` also on CPU tensors."""

    name = "triton"

    def __init__(self):
        triton, reason = _import("triton")
        self.absent = None if triton else f"{reason}; run `pip install triton`"
        self.engine = None
        # triton reads the same variable when the kernels are defined
        self.interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in (
            "1",
            "true",
            "on",
            "yes",
            "y",
        )

    def why_not(self, device: torch.device) -> str | None:
        if self.absent:
            return self.absent
        if self.engine is None:
            self.engine, self.absent = _import("fusedstep.kernels.multi_tensor_apply")
            if self.absent:
                return self.absent
        if device.type not in ("cuda", "cpu"):
            return f"it updates tensors on cuda, not on {device.type}"
        if device.type == "cpu" and not self.interpreted:
            return "it updates tensors on cuda; set TRITON_INTERPRET=1 to run it slowly on cpu"
        if device.type == "cuda" and self.interpreted:
            return "TRITON_INTERPRET is set: the interpreter reads host memory; unset it"
        if device.type == "cuda" and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        return None

    def apply(self, launch: Launch) -> None:
        self.engine.apply(launch)


class ReferenceBackend:
    """The numpy reference: slow, and the law. CUDA tensors travel to the host and back."""

    name = "reference"

    def why_not(self, device: torch.device) -> str | None:
        return None

    def apply(self, launch: Launch) -> None:
        from .reference.multi_tensor_apply import step_tensor

        if launch.found_inf is not None and launch.found_inf.item() != 0:
            return
        scale = None if launch.grad_scale is None else launch.grad_scale.item()
        for tensor in launch.entries:
            g = launch.grads[tensor.index]
            if g is None:
                continue
            memory = [tensor.param, *tensor.states, *([tensor.master] if launch.master else [])]
            param, master, states, carried = step_tensor(
                launch.rule,
                launch.variant,
                np.float64 if launch.float64 else np.float32,
                launch.hyper_row(tensor.group),
                tensor.step.item() + 1,
                [c.item() for c in tensor.carried],
                _to_numpy(g),
                _to_numpy(tensor.param),
                [_to_numpy(state) for state in tensor.states],
                _to_numpy(tensor.master) if launch.master else None,
                scale,
            )
            for target, value in zip(memory, [param, *states, master], strict=False):
                _copy_back(target, value)
            for target, value in zip(tensor.carried, carried, strict=True):
                target.fill_(float(value))
            tensor.step.add_(1)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor's elements in the order of its memory: 1-d view."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _to_numpy(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    flat = _flat(tensor).cpu()
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype is torch.bfloat16:
        return name, flat.view(torch.int16).numpy().view(np.uint16)
    return name, flat.numpy()


def _copy_back(target: torch.Tensor, value: np.ndarray) -> None:
    if target.dtype is torch.bfloat16:
        source = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    else:
        source = torch.from_numpy(np.ascontiguousarray(value))
    _flat(target).copy_(source)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (CudaBackend(), TritonBackend(), CpuBackend(), ReferenceBackend())
}


def choose(name: str, device: torch.device) -> Backend:
    """The backend of that name, or for ``"auto"`` the fastest that serves ``device``.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend cannot serve the device; the message has its reason.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(
            f"unknown backend {name!r}; choose one of {', '.join(['auto', *BACKENDS])}"
        )
    candidates = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}.get(
        device.type, ("cuda", "triton", "cpu")
    )
    names = candidates if name == "auto" else (name,)
    reasons = {}
    for candidate in names:
        reasons[candidate] = BACKENDS[candidate].why_not(device)
        if reasons[candidate] is None:
            return BACKENDS[candidate]
    told = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
    raise RuntimeError(f"no backend can update parameters on {device}: {told}")


def available_backends() -> dict[str, str | None]:
    """Every backend of this installation, with None or the reason why it is absent.

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
