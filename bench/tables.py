"""Rows as people read them, a line each: tables of pages and of the terminal, and its bar."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .measure import HOST_PHASES, Run


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def who(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["maker"], row["backend"])))


def algorithm(row: dict[str, Any]) -> str:
    plain = row["form"] in ("", "paper")
    return row["algorithm"] if plain else f"{row['algorithm']}, {row['form']}"


def peer(row: dict[str, Any]) -> str:
    return f"{row['vs_fastest_peer']:.1f}x {row['fastest_peer']}" if "fastest_peer" in row else ""


COLUMNS = {
    "set": lambda row: row["set"],
    "algorithm": algorithm,
    "by": who,
    "dtype": lambda row: row["dtype"],
    "threads": lambda row: str(row["threads"]),
    "step": lambda row: duration(row["seconds"]),
    "quartiles": lambda row: f"{duration(row['q1'])} .. {duration(row['q3'])}",
    "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:.2f}",
    "yardstick": lambda row: f"{row['yardstick'] / 1e9:.2f}",
    "of yardstick": lambda row: f"{row['yardstick_share']:.0%}",
    "x torch fused": lambda row: ratio(row["vs_torch_fused"]),
    "the same per byte": lambda row: ratio(row["bandwidth_vs_torch_fused"]),
    "x fastest peer": peer,
    "launches": lambda row: str(row.get("launches", "")),
}
NAMES = ("set", "algorithm", "by", "dtype", "threads")
Cells = dict[str, list[str]]


def device_cells(rows: list[dict[str, Any]]) -> Cells:
    """A line for every step of large tensors."""
    rows = [row for row in rows if row["phase"] == "step"]
    return {name: [cell(row) for row in rows] for name, cell in COLUMNS.items()}


def host_cells(rows: list[dict[str, Any]]) -> Cells:
    """A line for every step of small tensors: the host's time in each phase, and how many times
    as fast as torch's fused AdamW that is."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        if row["phase"] in HOST_PHASES:
            line = lines.setdefault(tuple(COLUMNS[name](row) for name in NAMES), {})
            line[row["phase"]] = f"{duration(row['seconds'])} (x {row['vs_torch_fused']:.2f})"
    cells = dict(zip(NAMES, map(list, zip(*lines)))) if lines else {}
    return cells | {name: [line.get(name, "") for line in lines.values()] for name in HOST_PHASES}


def training_cells(rows: list[dict[str, Any]]) -> Cells:
    """A line for every training step: the whole of it, and what of it is the optimizer's."""
    rows = [row for row in rows if row["phase"] == "training"]
    columns = {name: COLUMNS[name] for name in NAMES} | {
        "training step": lambda row: duration(row["seconds"]),
        "optimizer": lambda row: duration(row["optimizer_seconds"]),
        "its share": lambda row: f"{row['optimizer_share']:.1%}",
        "x torch fused": COLUMNS["x torch fused"],
    }
    return {name: [cell(row) for row in rows] for name, cell in columns.items()}


def markdown(header: list[str], lines: list[list[str]], words: Collection[str] = NAMES) -> str:
    """A table of a page; to the left are the first column and those that hold words."""
    aligned = ["---" if name in words or i == 0 else "---:" for i, name in enumerate(header)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, aligned, *lines))


def bar(**how: Any) -> Progress:
    """How much is done, while it is done, and nothing after."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), transient=True, **how)


def terminal(rows: list[dict[str, Any]]) -> list[Table]:
    """One table of large sets, one of small ones, one of training steps; names that all lines share
    stand below."""
    tables = []
    for cells in (device_cells(rows), host_cells(rows), training_cells(rows)):
        table = Table(box=None, header_style="bold", padding=(0, 1), caption_justify="left")
        shared = {name: set(column) for name, column in cells.items() if name in NAMES}
        shared = {name: min(found) for name, found in shared.items() if len(found) == 1}
        cells = {name: column for name, column in cells.items() if any(column)}
        cells = {name: column for name, column in cells.items() if name not in shared}
        for name in cells:
            table.add_column(name, justify="left" if name in NAMES else "right", no_wrap=True)
        for line in zip(*cells.values(), strict=True):
            table.add_row(*line)
        told = [f"{name} {value}" for name, value in shared.items()]
        table.caption = ", ".join(told)
        tables += [table] if table.row_count else []
    return tables


def complaints(run: Run) -> list[str]:
    """What was not measured, a line each."""
    lines, by_set = [], {}
    for task, need, free in run.left_out:
        by_set.setdefault(task.against, []).append((need, free, task.contender))
    for (parameter_set, mode, _), found in by_set.items():
        need, free, _ = min(found, key=lambda one: one[0])
        who = ", ".join(contender.label for *_, contender in found)
        lines.append(
            f"left out: {parameter_set.name} {mode.id}: needs {need / 1e9:.1f} GB or more of "
            f"{free / 1e9:.1f} GB free: {who}"
        )
    return lines + [f"failed: {label}: {why}" for label, why in run.failed.items()]
