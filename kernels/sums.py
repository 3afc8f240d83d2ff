"""Sums of squares over segments of the parameters (N7)."""

import triton
import triton.language as tl

from .numerics import fold

LANES = tl.constexpr(1024)  # of the summation tree


@triton.jit
def arrive(
    partial, slots, segment_begin, segment_chunks, segment_result, arrived, segment,
    SUMS: tl.constexpr, KEEPS_SUMS: tl.constexpr,
):  # fmt: skip
    """Count in a chunk of a segment; the last one sums the segment."""
    expected = tl.load(segment_chunks + segment)  # under way with the count
    tl.debug_barrier()
    before = tl.atomic_add(arrived + segment, 1, sem="acq_rel")
    if before + 1 == expected:
        begin, end = tl.load(segment_begin + segment), tl.load(segment_begin + segment + 1)
        total = tl.load(segment_result + segment).to(tl.pointer_type(tl.float64))
        sums = ()
        for k in tl.static_range(SUMS):
            lanes = tl.zeros((LANES,), tl.float64)
            for first in range(begin, end, LANES):
                slot = first + tl.arange(0, LANES)
                lanes += tl.load(partial + k * slots + slot, slot < end, other=0.0)
            sums += (fold(lanes),)
        fresh = sums[SUMS - 1] != 0.0 if KEEPS_SUMS else True
        for k in tl.static_range(SUMS):
            tl.store(total + k, sums[k], fresh)
        tl.store(arrived + segment, 0)
