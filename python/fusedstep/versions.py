"""The versions of tensors: torch counts its writes into each, and autograd looks at the count."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress

import torch

from . import shards


class Versions:
    """The version counts of the parameters that steps move and of the states that a survey reads.

    Args:
        launches: :class:`~fusedstep.launch.Launch` objects.
        served: the parameters of each, in the order of its entries.
        surveyed: states that a survey reads.
    """

    def __init__(self, launches: list, served: list[list[torch.Tensor]], surveyed: Iterable):
        self._launches, self._served = launches, served
        self._moved = [_whole_and_part(params) for params in served]
        self._surveyed = [t for t in _whole_and_part(list(surveyed)) if not t.is_inference()]

    def surveyed(self) -> list[int]:
        """How often torch's operations have written into the states that a survey reads."""
        return [t._version for t in self._surveyed]

    def count_step(self) -> None:
        """Count a change of every parameter with a gradient: kernels do not do so by themselves. A
        backward pass through what was computed from it before is then an error, and not wrong."""
        for launch, params, moved in zip(self._launches, self._served, self._moved, strict=True):
            some = launch.some_absent()
            count_changes(moved if some is None else _whole_and_part(list(compress(params, some))))


def _whole_and_part(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors, and of those that are distributed also what this process holds: operations write
    into either, and autograd looks at either."""
    return tensors + [shards.local(t) for t in tensors if shards.is_dtensor(t)]


def count_changes(tensors: list[torch.Tensor]) -> None:
    """Raise the tensors' versions, as torch's operations do that write into them."""
    try:
        torch.autograd.graph.increment_version(tensors)
    except (RuntimeError, TypeError):  # older torch takes one at a time
        for t in tensors:
            torch.autograd.graph.increment_version(t)
