"""Write counts: torch counts its writes into each tensor, and autograd looks at the count."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import GetSetDescriptorType

import torch
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import native, shards

_VERSION = torch.Tensor._version


class WriteCounts:
    """The version counts of the parameters that steps move and of the states that a survey reads.

    Args:
        launches: :class:`~fusedstep.launch.Launch` objects.
        served: the parameters of each, in the order of its entries.
        surveyed: states that a survey reads.
        resumed: whether masters are of an earlier plan or of a checkpoint.

    Attributes:
        mastered: the parameters that have masters.
    """

    def __init__(
        self,
        launches: list,
        served: list[list[torch.Tensor]],
        surveyed: Iterable,
        resumed: bool,
    ):
        self._launches, self._served = launches, served
        self._all = [p for params in served for p in params]
        self._distributed = any(map(shards.is_dtensor, self._all))
        self._plain = not self._distributed and not any(p.is_inference() for p in self._all)
        self._surveyed = [weakref.ref(t) for t in surveyed]
        pairs = zip(launches, served, strict=True)
        self.mastered = [p for launch, params in pairs if launch.master for p in params]
        self._different: list[torch.Tensor] = []  # edited, and no step has undone it yet
        # Writes into all that have masters, when both were last known to agree.
        self._known = None if resumed else self._writes()
        # How many a step of all adds, once known: to count twice in each step would take long.
        self._in_a_step: int | None = None

    def surveyed(self) -> int:
        """How often torch's operations have written into the states that a survey reads."""
        if not self._distributed:
            return _count_writes(self._surveyed)
        held = [t for ref in self._surveyed if (t := ref()) is not None]
        return _count_writes(self._with_parts(held))

    def edited(self) -> bool:
        """Whether anything but a step may have written into a parameter that has a master, and a
        gradient in this step."""
        if not self.mastered:
            return False
        if any(p.grad is not None for p in self._different):
            return True
        if self._writes() == self._known:
            return False
        self._in_a_step = None
        return True

    def mark_in_sync(self, different: Iterable[torch.Tensor] = ()) -> None:
        """From now on, only parameters in ``different`` differ from their masters."""
        self._different, self._known = [*different], self._writes()

    def _writes(self) -> int:
        """How often anybody wrote into parameters that have masters, wholes and parts."""
        if self._plain:
            return _count_writes(self.mastered)
        return _count_writes(self._with_parts([p for p in self.mastered if not p.is_inference()]))

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
        """Count a write into every parameter that has one of so many gradients, as kernels do not.
        A backward pass through what was computed from the old values then raises an error instead
        of giving wrong gradients."""
        stepping = self._all if gradients == len(self._all) else self._stepping()
        count_changes(self._with_parts(stepping))
        if not self.mastered:
            return
        before, whole = self._known, stepping is self._all
        if before is not None and whole and self._in_a_step is not None:
            self._known = before + self._in_a_step
            return
        self._known = self._writes()
        if before is not None and whole:
            self._in_a_step = self._known - before

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


def _count_writes(tensors: list) -> int:
    """The sum of the versions of tensors, or of what weak references lead to."""
    if native.module is not None and isinstance(_VERSION, GetSetDescriptorType):
        with torch._C.DisableTorchFunction():  # modes, as set_default_device's, would see each
            return native.module.count_writes(_VERSION, tensors)
    held = (t() if isinstance(t, weakref.ref) else t for t in tensors)
    return sum(t._version for t in held if t is not None)


def count_changes(tensors: list[torch.Tensor]) -> None:
    """Raise the tensors' versions, as torch's operations do that write into them."""
    try:
        increment_version(tensors)
    except (RuntimeError, TypeError):  # older torch takes one at a time
        for t in tensors:
            increment_version(t)
