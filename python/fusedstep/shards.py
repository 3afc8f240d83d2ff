"""Distributed parameters: of a ``DTensor``, each process steps the part that it holds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

PLAIN = (torch.Tensor, torch.nn.Parameter)  # checked first, as checks for subclasses take long


def dtensor_type() -> type | None:
    """``DTensor``, or None where nobody has imported its module, which takes long."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_dtensor(t: object) -> TypeGuard[DTensor]:
    if type(t) in PLAIN:
        return False
    kind = dtensor_type()
    return kind is not None and isinstance(t, kind)


def is_flattened(p: torch.Tensor) -> bool:
    """Whether a parameter is ``FullyShardedDataParallel``'s: a part, or all, of a flat one."""
    return getattr(p, "_fsdp_flattened", False)


def processes() -> int:
    """How many train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def mesh_of(t: torch.Tensor) -> DeviceMesh | None:
    """The ``DeviceMesh`` that a tensor is distributed over; None where it is no DTensor."""
    return t.device_mesh if is_dtensor(t) else None


def local(t: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds; all of it, where it is no DTensor."""
    if type(t) in PLAIN or not is_dtensor(t):  # the usual case, without a call
        return t
    part: Any = t._local_tensor  # to_local() takes 30 times as long
    return part if type(part) is torch.Tensor else getattr(part, "wait", lambda: part)()


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are distributed in the same way, or neither is."""
    if not is_dtensor(a) or not is_dtensor(b):
        return is_dtensor(a) == is_dtensor(b)
    return a.device_mesh == b.device_mesh and a.placements == b.placements


def distributed_like(t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A tensor, distributed as ``p`` is over the mesh of both."""
    if not is_dtensor(t) or not is_dtensor(p) or alike(t, p):
        return t
    return t.redistribute(p.device_mesh, p.placements)


class Axis(NamedTuple):
    """A dimension of a ``DeviceMesh``: of its processes, each has another part of a tensor."""

    mesh: DeviceMesh
    dim: int

    def group(self) -> torch.distributed.ProcessGroup:
        """The ``ProcessGroup``; raises where there is none for this process."""
        return self.mesh.get_group(self.dim)

    def order(self) -> tuple[int, list[int]]:
        """A key that sorts axes alike in all processes, those of one mesh by dimension."""
        return self.dim, torch.distributed.get_process_group_ranks(self.group())


def has_place(t: torch.Tensor) -> bool:
    """Whether this process is on the tensor's mesh, if it has one."""
    mesh = mesh_of(t)
    return mesh is None or mesh.get_coordinate() is not None


def axes(t: torch.Tensor) -> tuple[Axis, ...]:
    """The axes along which a tensor is cut; none where this process holds no part of it."""
    if not is_dtensor(t) or not has_place(t):
        return ()
    mesh, placements = t.device_mesh, enumerate(t.placements)
    cut = [dim for dim, at in placements if not at.is_replicate() and mesh.size(dim) > 1]
    return tuple(Axis(mesh, dim) for dim in cut)
