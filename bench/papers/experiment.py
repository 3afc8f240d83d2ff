"""What an experiment provides, and which there are."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import ModuleType
from typing import Any

Task = dict[str, Any]  # what one row is made from: values that JSON keeps
Row = dict[str, Any]  # {"task": ..., "result": ..., "seconds": ..., "versions": ...}

# A module of this name has NUMBER, TITLE, PAPER, CLAIM, SETTING and WHY for the page, SEEDS, and
#   tasks(quick, seeds) -> tasks       what is run; a change of any value runs it anew
#   run(task) -> result                a row's numbers, and curves for the picture
#   claims(rows) -> claims             what the paper says, decided from the rows
#   tables(rows) -> tables             for the page
#   draw(rows, figure)                 the picture; SIZE is its size in inches
# One that can also run at a larger size has LARGER (for the page: what differs there), and
#   larger_tasks() -> tasks            the most telling first
NAMES = (
    "finite_sum",
    "noisy_quadratic",
    "landscapes",
    "rosenbrock",
    "update_bound",
    "depth",
    "rare_gradients",
    "decoupling",
    "madgrad_sweeps",
    "large_batch",
    "mechanisms",
)


@dataclass(frozen=True)
class Claim:
    """One statement of a paper with the criterion that decides it here."""

    text: str
    holds: bool
    asserted: bool = False  # a run fails if it does not hold


@dataclass(frozen=True)
class Table:
    header: list[str]
    lines: list[list[str]]
    words: bool = False  # all columns are text; else all but the first are numbers


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")


def everything() -> list[ModuleType]:
    return sorted(map(load, NAMES), key=lambda experiment: experiment.NUMBER)


def name_of(experiment: ModuleType) -> str:
    return experiment.__name__.rpartition(".")[2]


def chosen(words: Iterable[str]) -> list[ModuleType]:
    """Experiments by number or name; all of them where no word is given.

    Raises:
        ValueError: there is no such experiment.
    """
    known = {key: one for one in everything() for key in (str(one.NUMBER), name_of(one))}
    for word in words:
        if word not in known:
            names = ", ".join(f"{one.NUMBER} {name_of(one)}" for one in everything())
            raise ValueError(f"there is no experiment {word!r}; there are {names}")
    wanted = {known[word].NUMBER for word in words}
    return [one for one in everything() if not wanted or one.NUMBER in wanted]


def verdict(claims: list[Claim]) -> str:
    held = [claim.holds for claim in claims]
    return "holds" if all(held) else "holds partly" if any(held) else "does not hold here"


def by_optimizer(rows: Iterable[Row], entry: str) -> dict[Any, dict[str, Row]]:
    """For each value of an entry of the tasks, the rows by optimizer."""
    found: dict[Any, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["task"][entry], {})[row["task"]["optimizer"]] = row
    return found


def or_inf(value: float | None) -> float:
    """A stored number; None stands for one that was not finite."""
    return math.inf if value is None else value


def number(value: float) -> str:
    """Three digits, as tables show them."""
    return f"{value:.3g}"


def with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"


def with_range(values: Sequence[float]) -> str:
    """The mean of values, and their least and greatest."""
    return f"{number(fmean(values))} ({number(min(values))}-{number(max(values))})"
