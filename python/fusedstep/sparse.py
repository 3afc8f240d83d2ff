"""Sparse gradients: the elements they touch are gathered, take a dense step, and are put back."""

from __future__ import annotations

import torch


class Touched:
    """The elements of a parameter that a sparse gradient has values for, for one step.

    Args:
        grad: ``torch.sparse_coo``, of any number of sparse dimensions; coalesced here.

    Attributes:
        grad: the values, ``[nnz, ...]``.
    """

    def __init__(self, grad: torch.Tensor):
        grad = grad.coalesce()
        self.grad = grad.values().contiguous()
        self._where = tuple(grad.indices())
        self._gathered: list[tuple[torch.Tensor, torch.Tensor]] = []

    def gather(self, full: torch.Tensor) -> torch.Tensor:
        """The touched elements of a tensor of the parameter's shape, ``[nnz, ...]``."""
        part = full[self._where].contiguous()
        self._gathered.append((full, part))
        return part

    def put_back(self) -> None:
        for full, part in self._gathered:
            full.detach().index_put_(self._where, part)
