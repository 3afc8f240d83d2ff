"""How a tensor lies in memory."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch

from . import shards


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill one stretch of memory, each exactly once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def is_plain(t: torch.Tensor) -> bool:
    """Whether memory holds a tensor's elements as they are, at an address that suits its dtype."""
    return not is_missing(t) and not t.is_neg() and t.data_ptr() % t.element_size() == 0


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether memory holds the elements in the same order and sign; strides of size-1 dims don't
    count."""
    return a.is_neg() == b.is_neg() and all(
        size == 1 or x == y for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def overlaps(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """Pairs, by position in the list, of dense tensors that share memory. Not every pair is given,
    but every tensor that shares memory is in one."""
    begin = np.array([t.data_ptr() for t in tensors], dtype=np.int64)
    end = begin + np.array([t.nbytes for t in tensors], dtype=np.int64)
    order = np.flatnonzero(end > begin)
    order = order[np.argsort(begin[order], kind="stable")]
    begin, end = begin[order], end[order]
    reach = np.maximum.accumulate(end)
    furthest = np.maximum.accumulate(np.where(end == reach, np.arange(len(end)), 0))
    (inside,) = np.nonzero(begin[1:] < reach[:-1])
    return list(zip(order[furthest[inside]].tolist(), order[inside + 1].tolist(), strict=True))


def is_missing(t: torch.Tensor) -> bool:
    """Whether a tensor has elements but no address: a wrapper, a meta tensor, freed storage."""
    try:
        t = shards.local(t)
        return t.data_ptr() == 0 and t.numel() != 0
    except RuntimeError:
        return True


def is_sparse(g: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return g is not None and g.layout is not torch.strided
