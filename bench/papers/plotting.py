"""The pictures' look, and what several of them draw."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ..plots import COLOURS, STYLE
from .experiment import Row

NAMES = ("Adam", "AMSGrad", "MAdam", "LaProp", "AdaMomentum", "DelayedAdam", "MADGRAD", "AvaGrad")
FIXED = dict(zip(NAMES, COLOURS))
# These share colours with algorithms that they are never drawn beside.
FIXED |= {"SGDM": COLOURS[3], "RMSprop": COLOURS[5], "AdaBelief": COLOURS[1], "AdaGrad": COLOURS[4]}
FIXED |= {"LAMB": COLOURS[1], "LaMAdam": COLOURS[5]}


def colour(name: str) -> str:
    """An algorithm has one colour in all pictures."""
    return FIXED.get(name, COLOURS[0])


def band(axis: Axes, x: list, middle: list, spread: list, label: str, color: str = "") -> None:
    """A line with a band of ± spread; the label begins with the algorithm's name."""
    known = [(a, b, c or 0.0) for a, b, c in zip(x, middle, spread) if b is not None]
    x, middle, spread = zip(*known) if known else ((), (), ())
    low = [b - c for b, c in zip(middle, spread)]
    high = [b + c for b, c in zip(middle, spread)]
    between(axis, x, middle, low, high, label, color)


def between(
    axis: Axes, x: list, middle: list, low: list, high: list, label: str, color: str = ""
) -> None:
    """A line within two others; the label begins with the algorithm's name."""
    color = color or colour(label.partition(",")[0])
    axis.plot(x, middle, label=label, color=color, linewidth=1.2)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def draw(experiment: ModuleType, rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    style = {**STYLE, "figure.constrained_layout.use": True, "savefig.dpi": 110}
    with plt.rc_context(style):
        figure = plt.figure(figsize=experiment.SIZE)
        experiment.draw(rows, figure)
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)
