"""Distributed parameters: of a ``DTensor``, each process steps the part that it holds."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

PLAIN = (torch.Tensor, torch.nn.Parameter)  # asked first, as asking for subclasses takes long


def dtensor_type() -> type | None:
    """``DTensor``, or None where nobody has imported its module, which takes long."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_dtensor(t: object) -> bool:
    if type(t) in PLAIN:
        return False
    kind = dtensor_type()
    return kind is not None and isinstance(t, kind)


def mesh_of(t: torch.Tensor):
    """The ``DeviceMesh`` that a tensor is distributed over; None where it is no DTensor."""
    return t.device_mesh if is_dtensor(t) else None


def local(t: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds; all of it, where it is no DTensor."""
    if not is_dtensor(t):
        return t
    part = t._local_tensor  # to_local() takes 30 times as long
    return part if type(part) is torch.Tensor else getattr(part, "wait", lambda: part)()


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are distributed in the same way, or neither is."""
    mesh = mesh_of(a)
    return mesh == mesh_of(b) and (mesh is None or a.placements == b.placements)


class Axis(NamedTuple):
    """A dimension of a ``DeviceMesh``: of its processes, each has another part of a tensor."""

    mesh: object
    dim: int

    def group(self) -> object:
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
    mesh = mesh_of(t)
    if mesh is None or not has_place(t):
        return ()
    placements = enumerate(t.placements)
    cut = [dim for dim, at in placements if not at.is_replicate() and mesh.size(dim) > 1]
    return tuple(Axis(mesh, dim) for dim in cut)
