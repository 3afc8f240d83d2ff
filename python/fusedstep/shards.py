"""Distributed parameters: of a ``DTensor``, each process steps the part that it holds."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch


def dtensor_type() -> type | None:
    """``DTensor``, or None where nobody has imported its module, which takes long."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_dtensor(t: object) -> bool:
    kind = dtensor_type()
    return kind is not None and isinstance(t, kind)


def mesh_of(t: torch.Tensor):
    """The ``DeviceMesh`` that a tensor is distributed over; None where it is no DTensor."""
    return t.device_mesh if is_dtensor(t) else None


@torch.no_grad()
def local(t: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds; all of it, where it is no DTensor."""
    if not is_dtensor(t):
        return t
    part = t.to_local()
    return part if type(part) is torch.Tensor else part.wait()  # a collective's, under way


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are distributed in the same way, or neither is."""
    mesh = mesh_of(a)
    return mesh == mesh_of(b) and (mesh is None or a.placements == b.placements)


def like(t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A tensor distributed as ``p`` is, on the same mesh; communicates where it is not yet."""
    return t if alike(t, p) else t.redistribute(p.device_mesh, p.placements)


class Axis(NamedTuple):
    """A dimension of a ``DeviceMesh``: of its processes, each has another part of a tensor."""

    mesh: object
    dim: int

    def add(self, sums: torch.Tensor) -> None:
        """Replace what each process has summed over its parts by the sum over all of them."""
        torch.distributed.all_reduce(sums, group=self.mesh.get_group(self.dim))


def axes(t: torch.Tensor) -> tuple[Axis, ...]:
    """The dimensions of its mesh that a tensor is cut along; none where it is no DTensor."""
    if not is_dtensor(t):
        return ()
    cut = [dim for dim, placement in enumerate(t.placements) if not placement.is_replicate()]
    return tuple(Axis(t.device_mesh, dim) for dim in cut)
