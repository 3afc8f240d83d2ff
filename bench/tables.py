"""Rows as people read them: in the terminal, and in the marked blocks of pages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from . import results, roofline
from .contenders import ALGORITHMS, MODES, OURS, ours
from .measure import HOST_PHASES, Run
from .parameter_sets import AXES, MODELS
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
SERIES = {point for axis in AXES.values() for point in axis}
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


def by_model(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each model, first the one that has the most, of those with as many the largest."""
    found = {name: [row for row in rows if row["set"] == name] for name in reversed(MODELS)}
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


def lines_of(cells: Cells, names: list[str]) -> list[list[str]]:
    return [list(line) for line in zip(*(cells[name] for name in names), strict=True)]


def of_ours(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Steps of ours on models: with all threads, and with one where that is fewer."""
    ours = [row for row in rows if row["maker"] == OURS and row["phase"] == "step"]
    most = max((row["threads"] for row in ours), default=0)
    chosen, alone = ([row for row in ours if row["threads"] == count] for count in (most, 1))
    return chosen, alone if most > 1 else []


def summary(found: dict[str, dict[str, Any]]) -> str:
    """A line for every algorithm in float32, a column for every backend of a machine."""
    lines: dict[str, dict[str, str]] = {}
    for content in found.values():
        rows, _ = of_ours(content["rows"])
        first, *_ = by_model(rows).values()
        for row in first:
            if row["dtype"] == "f32":
                column = f"{results.title_of(content['machine'])}, {row['backend']}, {row['set']}"
                cell = f"{row['vs_torch_fused']:.2f}x, {row['yardstick_share']:.0%}"
                beside = f"; {peer(row)}" if peer(row) else ""
                lines.setdefault(algorithm(row), {})[column] = cell + beside
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    cells = [[name, *(at.get(column, "") for column in columns)] for name, at in lines.items()]
    return markdown(["algorithm", *columns], sorted(cells)) if lines else ""


def speed(rows: list[dict[str, Any]]) -> str:
    """Ours on every model with all threads: float32 in full, and the ratio in other dtypes."""
    chosen, alone = (by_model(found) for found in of_ours(rows))
    return "\n".join(of_model(name, chosen[name], alone[name]) for name in chosen).strip()


def of_model(name: str, rows: list[dict[str, Any]], one_thread: list[dict[str, Any]]) -> str:
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
    return f"{name}, f32:\n\n{markdown(names, lines)}" if lines else ""


def host(rows: list[dict[str, Any]]) -> str:
    """Time of step() on the host for 400 tensors of 8, by what changed since the last step."""
    cells = host_cells([row for row in rows if row["set"] == "tiny"])
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


BLOCKS = {  # which rows a block shows, how, and its pictures
    "speed": (lambda row: row["set"] in MODELS, speed, ["bandwidth"]),
    "host": (
        lambda row: row["dtype"] == "f32" and (row["set"] == "tiny" or row["set"] in SERIES),
        host,
        ["host", "growth"],
    ),
    "training": (lambda row: row["phase"] == "training", training, []),
}


def block(name: str, found: dict[str, dict[str, Any]], folder: str) -> str:
    """The text between the marks of a block: tables, and pictures that lie in a folder."""
    if name == "model":
        return model()
    if name == "summary":
        parts = [summary(found), *pictures(found, ["bandwidth", "host"], folder)]
    else:
        shown, make, kinds = BLOCKS[name]
        parts = []
        for machine, content in found.items():
            rows = [row for row in content["rows"] if shown(row)]
            if table := make(rows):
                parts += [about(content, rows), table, *pictures([machine], kinds, folder)]
    return "\n\n".join(part.strip() for part in parts if part) or "No results of record yet."


def pictures(machines: Iterable[str], kinds: list[str], folder: str) -> list[str]:
    files = [f"{machine}-{kind}.png" for machine in machines for kind in kinds]
    return [f"![{file}]({folder}/{file})" for file in files if (OF_RECORD / file).exists()]


def about(content: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """One line: on what machine, with which versions, when; of all runs that rows come from."""
    runs = [content["runs"][name] for name in sorted({row["run"] for row in rows})]
    revisions = sorted({run["versions"].get("revision", "") for run in runs})
    changed = {revision.split()[0] for revision in revisions if " " in revision}
    commits = dict.fromkeys(revision.split()[0] for revision in revisions if revision)
    told = [commit[:7] + (" with changes" if commit in changed else "") for commit in commits]
    parts = [
        results.title_of(content["machine"]),
        f"torch {', '.join(sorted({run['versions']['torch'] for run in runs}))}",
        *([f"commit{'s' * (len(told) > 1)} {', '.join(told)}"] if told else []),
        ", ".join(sorted({run["time"][:10] for run in runs})),
    ]
    return f"{'; '.join(parts)}:"


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
