"""Rows as people read them: in the terminal, and in the marked blocks of pages."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from . import results, roofline
from .contenders import ALGORITHMS, MODES, OURS, ours
from .measure import HOST_PHASES, Run
from .parameter_sets import MODELS
from .results import OF_RECORD, ROOT

PAGES = [ROOT / "README.md", ROOT / "docs" / "speed.md"]
BLOCK = re.compile(r"(<!-- bench (\w+) -->\n).*?(<!-- end -->)", re.S)


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
HIDDEN = ("set", "dtype", "threads", "quartiles", "GB/s", "yardstick", "launches")  # on pages
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


def terminal(rows: list[dict[str, Any]]) -> list[Table]:
    """One table of large sets, one of small ones, one of training steps; what all lines share
    stands below."""
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


# Blocks of pages, from the results of record


def markdown(header: list[str], lines: list[list[str]]) -> str:
    aligned = ["---" if name in NAMES or i == 0 else "---:" for i, name in enumerate(header)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, aligned, *lines))


def of_one_model(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the model that has the most, and of those with as many of the largest."""
    found = Counter(row["set"] for row in rows if row["set"] in MODELS)
    chosen = max(found, key=lambda name: (found[name], list(MODELS).index(name)), default=None)
    return [row for row in rows if row["set"] == chosen]


def lines_of(cells: Cells, names: list[str]) -> list[list[str]]:
    return [list(line) for line in zip(*(cells[name] for name in names), strict=True)]


def of_ours(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Steps of ours on one model: with all threads, and with one where that is fewer."""
    ours = [row for row in rows if row["maker"] == OURS and row["phase"] == "step"]
    most = max((row["threads"] for row in ours), default=0)
    chosen = of_one_model([row for row in ours if row["threads"] == most])
    one_thread = [row for row in ours if row["threads"] == 1 < most]
    return chosen, [row for row in one_thread if row["set"] in {r["set"] for r in chosen}]


def summary(found: dict[str, dict[str, Any]]) -> str:
    """A line for every algorithm in float32, a column for every backend of a machine."""
    lines: dict[str, dict[str, str]] = {}
    for content in found.values():
        rows, _ = of_ours(content["rows"])
        for row in rows:
            if row["dtype"] == "f32":
                column = f"{results.title_of(content['machine'])}, {row['backend']}, {row['set']}"
                cell = f"{row['vs_torch_fused']:.2f}x, {row['yardstick_share']:.0%}"
                beside = f"; {peer(row)}" if peer(row) else ""
                lines.setdefault(algorithm(row), {})[column] = cell + beside
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    cells = [[name, *(at.get(column, "") for column in columns)] for name, at in lines.items()]
    return markdown(["algorithm", *columns], sorted(cells)) if lines else ""


def speed(rows: list[dict[str, Any]]) -> str:
    """Ours on a model with all threads: float32 in full, and the ratio in other dtypes."""
    rows, one_thread = of_ours(rows)
    full = [row for row in rows if row["dtype"] == "f32"]
    names = [name for name in COLUMNS if name not in HIDDEN]
    lines = lines_of(device_cells(full), names)
    alone = {(algorithm(r), who(r)): r["seconds"] for r in one_thread if r["dtype"] == "f32"}
    for line, row in zip(lines if alone else (), full):
        before = alone.get((algorithm(row), who(row)))
        line.append(ratio(before and before / row["seconds"]))
    names += ["x one thread"] if alone else []
    for dtype in [mode for mode in MODES if mode != "f32"]:
        also = {(algorithm(r), who(r)): r["vs_torch_fused"] for r in rows if r["dtype"] == dtype}
        for line, row in zip(lines if also else (), full):
            line.append(ratio(also.get((algorithm(row), who(row)))))
        names += [dtype] if also else []
    return f"{rows[0]['set']}, f32:\n\n{markdown(names, lines)}" if lines else ""


def host(rows: list[dict[str, Any]]) -> str:
    """Time of step() on the host for 400 tensors of 8, by what changed since the last step."""
    cells = host_cells([row for row in rows if row["set"] == "tiny" and row["dtype"] == "f32"])
    header = ["algorithm", "by", *HOST_PHASES]
    return markdown(header, lines_of(cells, header)) if cells["first"] else ""


def training(rows: list[dict[str, Any]]) -> str:
    """What of a small BERT's training step is the optimizer's."""
    cells = training_cells(rows)
    header = [name for name in cells if name not in ("set", "dtype", "threads")]
    return markdown(header, lines_of(cells, header)) if cells["training step"] else ""


def model() -> str:
    """Bytes per parameter that a step moves, by dtype mode: no measurement."""
    cpu = torch.device("cpu")
    modes = [mode for mode in MODES.values() if mode.param is mode.grad is not torch.float16]
    lines = []
    for name in ALGORITHMS:
        for rows in zip(*(ours(name, "cpu", mode) for mode in modes), strict=True):
            moved = [f"{roofline.model(row, cpu).moved:g}" for row in rows]
            lines.append([f"{name}, faded" if rows[0].fades else name, *moved])
    return markdown(["bytes per parameter", *(mode.id for mode in modes)], lines)


def block(name: str, found: dict[str, dict[str, Any]], folder: str) -> str:
    """The text between the marks of a block: tables, and pictures that lie in a folder."""
    if name == "model":
        return model()
    if name == "summary":
        parts = [summary(found), *pictures(found, ["bandwidth", "host"], folder)]
    else:
        make, kinds = {
            "speed": (speed, ["bandwidth"]),
            "host": (host, ["host", "growth"]),
            "training": (training, []),
        }[name]
        parts = []
        for machine, content in found.items():
            if table := make(content["rows"]):
                parts += [about(content), table, *pictures([machine], kinds, folder)]
    return "\n\n".join(part.strip() for part in parts if part) or "No results of record yet."


def pictures(machines: Iterable[str], kinds: list[str], folder: str) -> list[str]:
    files = [f"{machine}-{kind}.png" for machine in machines for kind in kinds]
    return [f"![{file}]({folder}/{file})" for file in files if (OF_RECORD / file).exists()]


def about(content: dict[str, Any]) -> str:
    """One line: on what machine, with which versions, when; the last run's."""
    when = max(content["runs"])
    known = content["runs"][when]["versions"]
    commit = f"; commit {known['revision'].split()[0][:7]}" if known.get("revision") else ""
    machine = results.title_of(content["machine"])
    return f"{machine}; torch {known['torch']}{commit}; {when[:10]}:"


def written(text: str, found: dict[str, dict[str, Any]], folder: Path = ROOT) -> str:
    """A page that stands in a folder, its blocks as the results of record would have them, those
    of GPUs first."""
    found = dict(sorted(found.items(), key=lambda one: "gpu" not in one[1]["machine"]))
    to = Path(os.path.relpath(OF_RECORD, folder)).as_posix()
    return BLOCK.sub(
        lambda match: f"{match[1]}\n{block(match[2], found, to).strip()}\n\n{match[3]}", text
    )


def write_pages() -> list[Path]:
    """Rewrite the blocks and draw the pictures; returns the pages that changed."""
    from .plots import draw  # matplotlib takes a second to load

    found, changed = results.of_record(), []
    for machine, content in found.items():
        draw(content["rows"], OF_RECORD, f"{machine}-")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = written(text, found, page.parent)
        if new != text:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed
