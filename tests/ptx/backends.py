"""Backends that run the compiled kernels' PTX on CPU tensors, for the bit matrix."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fusedstep import testing
from fusedstep.backends import BACKENDS, Backend
from fusedstep.launch import Launch, Pass, address_of
from fusedstep.reference.multi_tensor_apply import CHUNK

from tests.test_bits import SLOW, reference, wanted

from . import Kernel

HEADER = Path(__file__).parents[2] / "csrc" / "core" / "launch.h"


def cells(modes: Iterable[testing.Mode]) -> list[Any]:
    """Case, mode and shape set of those cells of the bit matrix that slow backends see."""
    return [
        pytest.param(case, mode, shapes, id=f"{case.id}-{mode.id}-{shapes}")
        for mode, case, shapes in product(modes, testing.CASES, testing.SHAPES)
        if wanted(case, mode, min(SLOW), shapes, full=False)
    ]


def assert_same_bits(backend: Backend, case: testing.Case, mode: testing.Mode, shapes: str) -> None:
    """Play a cell's scenario by a backend of its own; every stored bit is the reference's."""
    BACKENDS[backend.name] = backend
    try:
        got = testing.run(case, mode, shapes, backend.name)
    finally:
        del BACKENDS[backend.name]
    lines = testing.differences(got, reference(case.id, mode.id, shapes))
    assert not lines, "\n".join(lines)


class PtxBackend(Backend):
    """Runs each pass by a :class:`~tests.ptx.Kernel`, whose blocks take turns in another order."""

    takes_tensors = True  # to know which memory a kernel may touch

    def __init__(self, kernel: Callable[[Launch, Pass], Kernel]):
        self._kernel = kernel
        self._seed = 0

    def why_not(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else "PTX is run on the host"

    def prepare(self, launch: Launch, work: Pass) -> None:
        work.prepared = self._kernel(launch, work)

    def apply(self, launch: Launch, work: Pass) -> None:
        kernel, (grid, values, kept) = work.prepared, self.arguments(launch, work)
        parameters = bytearray(max(at + size for at, size in kernel.parameters))
        for (at, size), value in zip(kernel.parameters, values, strict=True):
            parameters[at : at + size] = value if isinstance(value, bytes) else pack(value, size)
        memory = [(t.data_ptr(), t.nbytes) for t in tensors_in([vars(launch), vars(work), kept])]
        self._seed += 1
        kernel(grid, bytes(parameters), memory, self._seed)

    def arguments(self, launch: Launch, work: Pass) -> tuple[int, list[Any], Any]:
        """Blocks, the kernel's parameters, and tensors made for this call."""
        raise NotImplementedError


class CudaPtx(PtxBackend):
    """The CUDA kernels, as nvcc compiles them."""

    name = "cuda-ptx"

    def arguments(self, launch: Launch, work: Pass) -> tuple[int, list[Any], Any]:
        amp = {
            "grad_scale": address_of(launch.grad_scale),
            "found_inf": address_of(launch.skip_flag(work)),
            "grad_norm_sq": address_of(launch.grad_norm_sq(work)),
        }
        struct = launch_struct()(**launch.fields(work), **amp)
        chunks = len(launch.chunk)
        pieces = 2 if 2 * launch.elements > chunks * CHUNK and not work.facts.EMITS else 1
        return max(chunks * pieces, 1), [bytes(struct)], None  # as kernels/enqueue.cuh has it


class TritonPtx(PtxBackend):
    """The Triton kernels, as Triton compiles them: those that take a loss scale, a flag to skip and
    a norm, of which some that change nothing are passed where there is none."""

    name = "triton-ptx"

    def arguments(self, launch: Launch, work: Pass) -> tuple[int, list[Any], Any]:
        from fusedstep.kernels import enqueue as engine

        scale = launch.grad_scale if launch.grad_scale is not None else torch.ones(())
        skip, norm = launch.skip_flag(work), launch.grad_norm_sq(work)
        skip = torch.zeros(()) if skip is None else skip
        norm = torch.zeros(1, dtype=torch.float64) if norm is None else norm
        values = [
            launch.address, launch.grad, launch.numel, launch.row, launch.chunk, launch.hyper,
            launch.source, scale, skip, norm, launch.ticket,
        ]  # fmt: skip
        if (sums := work.sums) is not None:
            values += [
                sums.partial, sums.partial.shape[1], launch.slot, work.segment, sums.segment_begin,
                sums.segment_chunks, sums.segment_sums, sums.segment_result, sums.arrived,
            ]  # fmt: skip
        values += [launch.numel.numel(), len(launch.chunk)]
        values += [0, 0]  # memory that Triton gives kernels which ask for it
        return engine.programs(launch, work), values, (scale, skip, norm)


def pack(value: Any, size: int) -> bytes:
    number = value.data_ptr() if isinstance(value, torch.Tensor) else value
    return int(number).to_bytes(size, "little")


@cache
def launch_struct() -> type[ctypes.Structure]:
    """The C++ struct Launch, as its header declares it."""
    [body] = re.findall(r"struct Launch \{(.*?)\n\};", HEADER.read_text(), re.DOTALL)
    fields = []
    for declared, name in re.findall(r"^  ([^/\n=]*[ *])(\w+) = ", body, re.MULTILINE):
        wide = "*" in declared or "int64" in declared
        fields.append((name, ctypes.c_uint64 if wide else ctypes.c_int32))
    return type("LaunchStruct", (ctypes.Structure,), {"_fields_": fields})


def tensors_in(held: Any) -> Iterator[torch.Tensor]:
    """Every tensor that objects of fusedstep's hold, and those that they hold."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, (list, tuple)):
        for each in held:
            yield from tensors_in(each)
    elif isinstance(held, dict):
        yield from tensors_in([*held.values()])
    elif type(held).__module__.startswith("fusedstep."):
        yield from tensors_in(vars(held))
