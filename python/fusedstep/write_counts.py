"""Write counts: torch counts its writes into each tensor, and autograd looks at the count."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import shards


class WriteCounts:
    """The version counts of the parameters that steps move and of the states that a survey reads.

    Args:
        launches: :class:`~fusedstep.launch.Launch` objects.
        served: the parameters of each, in the order of its entries.
        surveyed: states that a survey reads.
    """

    def __init__(self, launches: list, served: list[list[torch.Tensor]], surveyed: Iterable):
        self._launches, self._served = launches, served
        self._all = [p for params in served for p in params]
        self._distributed = any(map(shards.is_dtensor, self._all))
        self._surveyed = [weakref.ref(t) for t in surveyed]
        # Who writes into one parameter usually writes into all; to look at all would take long.
        ends = [
            p
            for launch, params in zip(launches, served, strict=True)
            for p in (params[0], params[-1])
            if launch.master and not p.is_inference()
        ]
        self._known = {p: self._versions(p) for p in ends}  # of those that have masters

    def surveyed(self) -> list[int]:
        """How often torch's operations have written into the states that a survey reads."""
        held = [t for ref in self._surveyed if (t := ref()) is not None]
        return [t._version for t in self._with_parts(held)]

    def edited(self) -> bool:
        """Whether others than steps wrote into parameters that have masters and will move."""
        if not self._known:
            return False
        known = self._known.items()
        return any(p.grad is not None and self._versions(p) != before for p, before in known)

    def take_edits(self, of_all: bool = True) -> None:
        """Take parameters that have masters as they are: all, or those that have a gradient."""
        for p in self._known:
            if of_all or p.grad is not None:
                self._known[p] = self._versions(p)

    def _versions(self, p: torch.Tensor) -> list[int]:
        return [t._version for t in self._with_parts([p])]

    def announce_step(self) -> None:
        """Let torch's dispatch modes see that parameters with a gradient are about to change, which
        kernels do not tell: ``allow_mutation_on_saved_tensors`` keeps copies for backward."""
        if not is_in_torch_dispatch_mode():
            return
        with torch.no_grad():  # no decorator, which takes 2 us in every step
            for p in self._stepping():
                if not p.is_inference():
                    p.copy_(p)  # moves nothing

    def count_step(self, gradients: int) -> None:
        """Count a change of every parameter that has one of so many gradients: kernels do not do so
        by themselves. A backward pass through what was computed from it before is then an error,
        and not wrong."""
        stepping = self._all if gradients == len(self._all) else self._stepping()
        count_changes(self._with_parts(stepping))
        if self._known:
            self.take_edits(of_all=False)

    def _stepping(self) -> list[torch.Tensor]:
        """The parameters with a gradient."""
        pairs = zip(self._launches, self._served, strict=True)
        return [p for launch, params in pairs for p in launch.with_gradient(params)]

    def _with_parts(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors, and of those that are distributed also what this process holds: operations write
        into either, and autograd looks at either."""
        if not self._distributed:
            return tensors
        parts = [shards.local(t) for t in tensors if shards.is_dtensor(t)]
        return tensors + [part for part in parts if not part.is_inference()]


def count_changes(tensors: list[torch.Tensor]) -> None:
    """Raise the tensors' versions, as torch's operations do that write into them."""
    try:
        increment_version(tensors)
    except (RuntimeError, TypeError):  # older torch takes one at a time
        for t in tensors:
            increment_version(t)
