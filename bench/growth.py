"""What a step costs, in time and memory, as parameters, tensors or groups grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from .contenders import OURS
from .parameter_sets import AXES

PHASES = {"parameters": "step", "tensors": "fresh", "groups": "fresh"}


def points(rows: list[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """An axis's rows by what was measured, ours and peers', in the order of the axis."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        # A step of few parameters is the host's work; its rows have the host's phases.
        if row["set"] in AXES[axis] and row["phase"] == PHASES[axis]:
            name = row["algorithm"] if row["maker"] == OURS else row["maker"]
            name = f"{name} {row['backend']}".strip()
            found.setdefault(name, []).append(row)
    return found


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """a and b of y = a + b x, neither below 0, with the least relative error."""
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    columns = np.stack([1 / y, x / y], axis=1)
    a, b = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)[0]
    if a < 0 or b < 0:  # the best line through 0, or the best level one
        only = columns[:, int(a < 0)]
        best = only.sum() / (only @ only)
        a, b = (0.0, best) if a < 0 else (best, 0.0)
    return float(a), float(b)
