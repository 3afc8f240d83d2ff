"""Whether what a step was planned on is still as it was: looked at in every step."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch


@cache
def native():
    """The compiled module, or None where it is not built."""
    try:
        from . import _native
    except ImportError:
        return None
    return _native


def contents(tree: dict | list, without: str | None = None) -> list[Any]:
    """What a tree of dicts and lists holds, each of them followed by what it holds itself; entries
    of dicts under the key ``without`` are left out."""
    found = []
    for value in _values(tree, without):
        found.append(value)
        if isinstance(value, (dict, list)):
            found += contents(value, without)
    return found


def _values(tree: dict | list, without: str | None) -> Iterable[Any]:
    if not isinstance(tree, dict):
        return tree
    if without is None:
        return tree.values()  # its keys may be tensors, whose comparison is a tensor
    return [value for key, value in tree.items() if key != without]


class Watch:
    """The very objects that a tree of dicts and lists holds. Of them, only these may change."""

    def __init__(self, tree: dict | list, without: str | None = None):
        self._found, self._without = contents(tree, without), without
        if native() is not None:
            self.holds = native().Watch(self._found, without).holds

    def holds(self, tree: dict | list) -> bool:
        """Whether a tree holds them and no others, in the same order."""
        now = contents(tree, self._without)
        return len(now) == len(self._found) and all(map(operator.is_, now, self._found))


def gatherer(
    params: list[torch.Tensor], dtypes: list[int], places: list[int], fixed: list[torch.Tensor]
):
    """What reads and checks gradients without Python's attribute calls (csrc/gather.h); None before
    torch 2.10, and where a parameter is no tensor or makes its gradient itself."""
    if native() is None or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return None
    try:
        return native().Gatherer(torch.Tensor, params, dtypes, places, fixed)
    except ImportError:
        return None
