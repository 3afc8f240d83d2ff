"""Sums of squares over segments of the parameters, one summation tree for all backends (N7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from .shards import Axis

CHUNK = 16384  # elements; the numerics law's constant (N7), kChunk in csrc/core/tensor_lists.h


def chunk_counts(numels: Sequence[int]) -> np.ndarray:
    return -(-np.asarray(numels, dtype=np.int64) // CHUNK)


class Sums:
    """Chunk sums of all parameters of an optimizer on one device, and the sums of their segments.
    Of a DTensor, of the part that this process holds.

    Slots number the chunks of all parameters, in the optimizer's order, whether they take part or
    not: a sum does not depend on who has no gradient yet. A segment is a stretch of parameters.

    Args:
        count: sums per segment, K.
        numels: elements of every parameter of the optimizer.
        segments: the segment of every parameter, 0, 1, ... in order.
        planned: indices of the parameters that launches on ``device`` serve.
        totals: float64 ``[K]`` per segment, where the results go; None: own memory, from 0.
        axes: of every segment, along which its tensors are spread over processes, if any is; they
            need own memory.

    Attributes:
        partial: ``[K, slots]`` float64.
        begin: ``[S + 1]``, chunks: ``[S]`` that one step brings, address: ``[S]`` of totals; int64.
        arrived: ``[S]`` int32, chunks of the step under way.
    """

    def __init__(
        self,
        count: int,
        numels: Sequence[int],
        segments: Sequence[int],
        planned: Sequence[int],
        device: torch.device,
        totals: list[torch.Tensor] | None = None,
        axes: Sequence[tuple[Axis, ...]] = (),
    ):
        counts, segments = chunk_counts(numels), np.asarray(segments, dtype=np.int64)
        planned = np.asarray(planned, dtype=np.int64)
        size = int(segments.max(initial=-1)) + 1
        per_segment = np.bincount(segments, counts, size).astype(np.int64)
        chunks = np.bincount(segments[planned], counts[planned], size).astype(np.int64)
        self.count, self.device = count, device
        self.segments = segments
        self.partial = torch.zeros((count, int(counts.sum())), dtype=torch.float64, device=device)
        self.begin = torch.from_numpy(np.cumsum([0, *per_segment])).to(device)
        self.chunks = torch.from_numpy(chunks).to(device)
        self.arrived = torch.zeros(size, dtype=torch.int32, device=device)
        self._own = None if totals else torch.zeros((size, count), dtype=torch.float64).to(device)
        self.totals = totals = totals or list(self._own)
        spread: dict[tuple[Axis, ...], list[int]] = {}
        for segment, along in enumerate(axes):
            spread.setdefault(along, []).append(segment)
        spread.pop((), None)
        self._spread = {along: torch.tensor(s, device=device) for along, s in spread.items()}
        self.address = torch.tensor([t.data_ptr() for t in totals], dtype=torch.int64).to(device)

    @staticmethod
    def slots(numels: Sequence[int]) -> np.ndarray:
        """The slot of every parameter's first chunk."""
        counts = chunk_counts(numels)
        return np.cumsum(counts) - counts

    @property
    def is_spread(self) -> bool:
        """Whether other processes have a share in a sum."""
        return bool(self._spread)

    def join(self) -> None:
        """Add what other processes have summed, each over the parts that it holds."""
        for along, segments in self._spread.items():
            sums, chunks = self._own[segments], self.chunks[segments, None]
            sums = sums.where(chunks > 0, 0.0)  # of no element, no kernel makes a sum
            for axis in along:
                axis.add(sums)
            self._own[segments] = sums

    def fields(self) -> dict[str, int]:
        """The native ``Launch`` struct's members, as integers."""
        return {
            "slots": self.partial.shape[1],
            "partial": self.partial.data_ptr(),
            "segment_begin": self.begin.data_ptr(),
            "segment_chunks": self.chunks.data_ptr(),
            "segment_sums": self.address.data_ptr(),
            "arrived": self.arrived.data_ptr(),
        }


class Norm(Sums):
    """The squares of all gradients, in one segment for each stretch of parameters that are spread
    alike.

    Args:
        axes: of every parameter, along which it is spread over processes.

    Attributes:
        total: the squared norm, float64 ``[1]``.
    """

    def __init__(
        self,
        numels: Sequence[int],
        axes: Sequence[tuple[Axis, ...]],
        planned: Sequence[int],
        device: torch.device,
    ):
        stretches = [list(stretch) for _, stretch in groupby(axes)]
        segments = [s for s, stretch in enumerate(stretches) for _ in stretch]
        first = [stretch[0] for stretch in stretches]
        super().__init__(1, numels, segments, planned, device, axes=first)
        alone = len(stretches) == 1
        self.total = self.totals[0] if alone else torch.zeros(1, dtype=torch.float64).to(device)

    def join(self) -> None:
        super().join()
        if self.total is not self.totals[0]:
            self.total.zero_()
            for part in self.totals:  # in this order on every device
                self.total.add_(part)
