"""Sums of squares over segments of the parameters, one summation tree for all backends (N7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
import torch.distributed as dist

from .reference.multi_tensor_apply import CHUNK
from .shards import Axis


def chunk_counts(numels: Sequence[int]) -> np.ndarray:
    return -(-np.asarray(numels, dtype=np.int64) // CHUNK)


def first_slots(numels: Sequence[int]) -> np.ndarray:
    """Where the chunks of each tensor begin, in a list of the chunks of all."""
    counts = chunk_counts(numels)
    return np.cumsum(counts) - counts


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
        totals: float64 ``[K]`` per segment, what kernels read; None: own memory, from 0.
        axes: of every parameter, those along which it is spread over processes, if any; the same
            for all of a segment.
        keeps: the last sum is a count; where it is 0, a segment's totals stay.

    Attributes:
        partial: ``[K, slots]`` float64.
        results: like totals, but where kernels write; the same tensors, unless other processes hold
            part of the segment.
        segment_begin: ``[S + 1]``, segment_chunks: ``[S]`` that one step brings; int64.
        segment_sums, segment_result: ``[S]`` int64, addresses of totals and results.
        arrived: ``[S]`` int32, chunks of the step under way.
    """

    def __init__(
        self,
        count: int,
        numels: Sequence[int],
        segments: Sequence[int],
        planned: Sequence[int],
        device: torch.device,
        *,
        totals: list[torch.Tensor] | None = None,
        axes: Sequence[tuple[Axis, ...]],
        keeps: bool = False,
    ):
        counts, self.segments = chunk_counts(numels), np.asarray(segments, dtype=np.int64)
        per_segment = np.bincount(self.segments, counts).astype(np.int64)
        size = len(per_segment)
        served = np.asarray(planned, dtype=np.int64)
        chunks = np.bincount(self.segments[served], counts[served], size).astype(np.int64)
        self.keeps = keeps
        self.partial = torch.zeros((count, int(counts.sum())), dtype=torch.float64, device=device)
        self.segment_begin = torch.from_numpy(np.cumsum([0, *per_segment])).to(device)
        self.segment_chunks = torch.from_numpy(chunks).to(device)
        self.arrived = torch.zeros(size, dtype=torch.int32, device=device)
        if totals is None:
            totals = list(torch.zeros((size, count), dtype=torch.float64, device=device))
        self.totals, self.results = totals, list(totals)
        of = dict(zip(self.segments.tolist(), axes, strict=True))
        shared = [segment for segment, along in of.items() if along]
        self._mine = torch.zeros((len(shared), count), dtype=torch.float64, device=device)
        for segment, result in zip(shared, self._mine, strict=True):
            self.results[segment] = result
        self._joined = [totals[segment] for segment in shared]
        members: dict[Axis, list[int]] = {}
        for i, segment in enumerate(shared):
            for axis in of[segment]:
                members.setdefault(axis, []).append(i)
        # in an order that is the same everywhere, or processes would wait for each other
        self._groups = [
            (axis.group(), torch.tensor(members[axis], device=device))
            for axis in sorted(members, key=Axis.order)
        ]
        self.segment_sums, self.segment_result = (
            torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64, device=device)
            for tensors in (self.totals, self.results)
        )

    def join(self) -> None:
        """Add up, into totals, the results of all processes, each for the parts that it holds."""
        if not self._joined:
            return
        sums = self._mine.clone()  # of the last step that was not skipped
        if self.keeps:
            self._mine.zero_()  # where nobody takes part here, no kernel writes it, and it adds 0
        for group, rows in self._groups:
            part = sums[rows]
            dist.all_reduce(part, group=group)
            sums[rows] = part
        if self.keeps:
            sums = sums.where(sums[:, -1:] > 0, torch.stack(self._joined))
        torch._foreach_copy_(self._joined, list(sums))

    def fields(self) -> dict[str, int]:
        """The native ``Launch`` struct's members, as integers."""
        tables = (
            "partial", "arrived", "segment_begin", "segment_chunks", "segment_sums",
            "segment_result",
        )  # fmt: skip
        fields = {name: getattr(self, name).data_ptr() for name in tables}
        return {"slots": self.partial.shape[1], **fields}


class Norm(Sums):
    """The squared norm of all gradients, with one segment for each stretch of parameters that are
    spread alike.

    Args:
        axes: of every parameter, along which it is spread over processes.
        skips: whether a step whose norm is not finite is skipped.

    Attributes:
        total: the squared norm, float64 ``[1]``.
    """

    def __init__(
        self,
        numels: Sequence[int],
        axes: Sequence[tuple[Axis, ...]],
        planned: Sequence[int],
        device: torch.device,
        *,
        skips: bool = False,
    ):
        stretches = [list(stretch) for _, stretch in groupby(axes)]
        segments = [s for s, stretch in enumerate(stretches) for _ in stretch]
        # Totals and zeros, as many as a power of two, so that halves can be added.
        size = 1 << (len(stretches) - 1).bit_length()
        self._parts = torch.zeros((size, 1), dtype=torch.float64, device=device)
        totals = list(self._parts[: len(stretches)])
        super().__init__(1, numels, segments, planned, device, totals=totals, axes=axes)
        self.total = totals[0] if size == 1 else torch.zeros_like(totals[0])
        self._skip = torch.zeros(1, dtype=torch.float32, device=device) if skips else None
        self._found_inf: torch.Tensor | None = None

    def take_found_inf(self, found_inf: torch.Tensor | None) -> torch.Tensor | None:
        """Take a step's AMP flag. Returns what skips the step where it is not 0, float32: that
        flag, or what ``join`` will make of it and the norm."""
        if self._skip is None:
            return found_inf
        self._found_inf = found_inf
        return self._skip

    def join(self) -> None:
        super().join()
        parts = self._parts
        while half := parts.shape[0] // 2:  # so the order is the same on every device
            parts = parts[:half] + parts[half:]
        if parts is not self._parts:
            self.total.copy_(parts[0])
        if self._skip is not None:
            self._skip.copy_(self.total - self.total)  # 0, or NaN where it is not finite
            if self._found_inf is not None:
                self._skip.add_(self._found_inf.reshape(1))
