"""Whether the objects that a step was planned on are still there: checked in every step."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from . import native


def require(where: str, what: str, value: Any, kind: type[dict] | type[list]) -> None:
    """Require a dict or a list: in other containers, a step would not notice a change."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{where}: {what} is a {type(value).__name__}, within which a step sees no change. "
            f"Make it a {kind.__name__}."
        )


def contents(tree: dict | list, names: tuple[str, ...] = (), only: bool = False) -> list[Any]:
    """Keys and values that a tree of dicts and lists holds, every dict and list followed by what it
    holds itself. Entries of dicts under ``names`` are left out, or with ``only`` those under all
    other strings."""
    found = []
    for held in _entries(tree, names, only) if isinstance(tree, dict) else tree:
        found.append(held)
        if isinstance(held, (dict, list)):
            found += contents(held, names, only)
    return found


def _entries(tree: dict, names: tuple[str, ...], only: bool) -> Iterator[Any]:
    for key, value in tree.items():
        if not isinstance(key, str) or (key in names) == only:  # of tensors, == is another tensor
            yield from (key, value)


class Watch:
    """The keys and values of a tree of dicts and lists, remembered by identity: it notices that an
    object was replaced, not that a tensor's content changed.

    Args:
        tree: what is remembered.
        without: keys of dicts that are left out with their values.
        only: if given, the strings among the keys of dicts that are not left out.
        lost: tensors are then held weakly, and the reference to each that dies is put here: another
            object may have taken its identity, so the watch must not be asked any more. Keys of
            ``tree`` are still kept alive (torch swaps no parameter that has weak references). If
            None, or without native code, everything is kept alive.
    """

    holds: Callable[[dict | list], bool]  #: whether a tree holds them and no others, in this order

    def __init__(
        self,
        tree: dict | list,
        without: tuple[str, ...] = (),
        only: tuple[str, ...] | None = None,
        lost: list[weakref.ref] | None = None,
    ):
        self._found: list[Any] = []  # kept alive, or others could take their identity
        self._names = (without, False) if only is None else (only, True)
        if native.module is None:
            self._found = contents(tree, *self._names)
            self.holds = self._holds
            return
        self.holds = native.module.Watch(tree, *self._names, self._found).holds
        if lost is not None:
            keys = set(map(id, tree)) if isinstance(tree, dict) else ()

            def weak(held: Any) -> bool:
                # last, as it takes long for a string
                return type(held) is not str and id(held) not in keys and isinstance(held, Tensor)

            self._found = [
                weakref.ref(held, lost.append) if weak(held) else held
                for held in self._found
                if not isinstance(held, (dict, list))  # their contents are compared anyway
            ]

    def _holds(self, tree: dict | list) -> bool:
        now = contents(tree, *self._names)
        return len(now) == len(self._found) and all(map(operator.is_, now, self._found))
