"""Pictures of rows: bandwidth, the host's time, growth."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from . import growth
from .contenders import OURS
from .tables import algorithm, who

Rows = list[dict[str, Any]]
# Okabe and Ito's colours, which colour-blind people tell apart; shapes differ too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933"]
SHAPES = "osD^vP<>Xd"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": SHAPES[i % len(SHAPES)]}


def bandwidth(rows: Rows) -> plt.Figure | None:
    """Bytes per second of every algorithm, ours filled and peers hollow, against the yardstick."""
    rows = [row for row in rows if row["phase"] == "step"]
    rows = [row for row in rows if row["set"] not in growth.AXES["parameters"]]
    most = max((row["threads"] for row in rows), default=0)
    rows = [row for row in rows if row["threads"] == most]
    panels = list(dict.fromkeys((row["set"], row["dtype"]) for row in rows))
    if not panels:
        return None
    ours = [row for row in rows if row["maker"] == OURS]
    names = list(dict.fromkeys(algorithm(row) for row in [*ours, *rows]))[::-1]
    makers = list(dict.fromkeys(who(row) for row in [*ours, *rows]))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    size = (3.2 + 2.4 * across, (1.0 + 0.26 * len(names)) * down)
    figure, grid = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.set_axis_off()
    for (chosen, dtype), axis in zip(panels, grid.flat):
        here = [row for row in rows if (row["set"], row["dtype"]) == (chosen, dtype)]
        yardstick = statistics.median(row["yardstick"] for row in here) / 1e9
        axis.axvline(yardstick, color="black", linewidth=1, linestyle="--", label="yardstick")
        for i, maker in enumerate(makers):
            of = [row for row in here if who(row) == maker]
            x = [row["bytes_per_second"] / 1e9 for row in of]
            y = [names.index(algorithm(row)) for row in of]
            look, filled = _look(i), maker.startswith(OURS)
            axis.scatter(
                x, y, s=42 if filled else 30, marker=look["marker"], edgecolors=look["color"],
                facecolors=look["color"] if filled else "none", label=maker, zorder=3,
            )  # fmt: skip
        axis.set(title=f"{chosen}, {dtype}", xlabel="GB/s", xlim=(0, None))
        axis.set_yticks(range(len(names)), names)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def host(rows: Rows) -> plt.Figure | None:
    """The host's time for a step of AdamW against the number of tensors."""
    series: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: (row["phase"], row["tensors"])):
        if row["set"] in growth.AXES["tensors"] and row["algorithm"] == "AdamW":
            phases = ("fresh", "unchanged") if row["maker"] == OURS else ("fresh",)
            if row["phase"] in phases:
                name = who(row) + (f", gradients {row['phase']}" if len(phases) > 1 else "")
                series.setdefault(name, []).append(row)
    if not series:
        return None
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for i, (name, of) in enumerate(series.items()):
        x, y = [row["tensors"] for row in of], [row["seconds"] * 1e6 for row in of]
        filled = None if name.startswith(OURS) else "none"
        axis.plot(x, y, label=name, markersize=5, markerfacecolor=filled, **_look(i))
    axis.set(xscale="log", yscale="log", xlabel="tensors of 8 elements", ylabel="µs per step")
    axis.set_title("step() of AdamW on the host")
    axis.legend(loc="upper left")
    return figure


def cost(rows: Rows) -> plt.Figure | None:
    """Time and memory against parameters, tensors and groups, with straight lines a + b x."""
    axes_rows = {axis: growth.points(rows, axis) for axis in growth.AXES}
    axes_rows = {axis: found for axis, found in axes_rows.items() if found}
    if not axes_rows:
        return None
    size = (1 + 3.6 * len(axes_rows), 5.4)
    figure, grid = plt.subplots(2, len(axes_rows), figsize=size, squeeze=False)
    for column, (axis, series) in enumerate(axes_rows.items()):
        for i, (name, of) in enumerate(series.items()):
            x, look = [row[axis] for row in of], _look(i)
            measures = (
                (grid[0][column], [row["seconds"] * 1e3 for row in of]),
                (grid[1][column], [_memory(row) / 1e6 for row in of]),
            )
            for place, y in measures:
                place.plot(x, y, linestyle="none", markersize=5, label=name, **look)
                if len(x) > 2:
                    a, b = growth.line(x, y)
                    dense = np.geomspace(min(x), max(x), 100)
                    place.plot(dense, a + b * dense, color=look["color"], linewidth=1)
        for place, unit in zip(
            grid[:, column], ("ms per step", "MB held at the peak"), strict=True
        ):
            low, high = place.dataLim.intervaly  # level rows stay level, whatever their last digits
            place.set(
                xscale="log", yscale="log", xlabel=axis, ylabel=unit, ylim=(low / 2, high * 2)
            )
        grid[0][column].set_title(f"lines: a + b {axis}", fontsize=9)
    labels = {}
    for place in grid[0]:
        labels |= dict(zip(*reversed(place.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside right upper")
    return figure


def _memory(row: dict[str, Any]) -> int:
    return row["held_bytes"] + (row.get("peak_extra_bytes") or 0)


def draw(rows: Rows, folder: Path, prefix: str = "") -> list[Path]:
    """Every picture that the rows suffice for."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with plt.rc_context({**STYLE, "figure.constrained_layout.use": True}):
        for name, picture in {"bandwidth": bandwidth, "host": host, "growth": cost}.items():
            if (figure := picture(rows)) is not None:
                made.append(folder / f"{prefix}{name}.png")
                figure.savefig(made[-1])
                plt.close(figure)
    return made
