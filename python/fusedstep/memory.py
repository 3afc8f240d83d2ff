"""How a tensor lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

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


def overlaps(tensors: list[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Pairs, by position in the list, of dense tensors that share memory. Not every pair is given,
    but every tensor that shares memory is in one."""
    furthest, end = -1, 0
    for begin, k in sorted((t.data_ptr(), k) for k, t in enumerate(tensors) if t.numel()):
        if begin < end:
            yield furthest, k
        reach = begin + tensors[k].numel() * tensors[k].element_size()
        if reach > end:
            furthest, end = k, reach


def is_missing(t: torch.Tensor) -> bool:
    """Whether a tensor has elements but no address: a wrapper, a meta tensor, freed storage."""
    try:
        t = shards.local(t)
        return t.numel() != 0 and t.data_ptr() == 0
    except RuntimeError:
        return True


def is_sparse(g: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return g is not None and g.layout is not torch.strided
