"""The marked blocks of README.md and docs/speed.md, from the results of record."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import results, step_bytes
from .contenders import ALGORITHMS, MODES, OURS, ours
from .measure import HOST_PHASES
from .parameter_sets import AXES, MODELS
from .results import OF_RECORD, ROOT
from .tables import (
    COLUMNS,
    Cells,
    algorithm,
    device_cells,
    host_cells,
    markdown,
    peer,
    ratio,
    training_cells,
    who,
)

PAGES = [ROOT / "README.md", ROOT / "docs" / "speed.md"]
BLOCK = re.compile(r"(<!-- bench (\w+) -->\n).*?(<!-- end -->)", re.S)
HIDDEN = ("set", "dtype", "threads", "quartiles", "GB/s", "yardstick", "launches")
SERIES = {point for axis in AXES.values() for point in axis}


def by_model(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each model; first the model with the most rows, of those with as many the largest."""
    found = {name: [row for row in rows if row["set"] == name] for name in reversed(MODELS)}
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


def lines_of(cells: Cells, names: list[str]) -> list[list[str]]:
    return [list(line) for line in zip(*(cells[name] for name in names), strict=True)]


def of_ours(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of our steps with the most threads, and with one thread where that is fewer."""
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
                cell = f"{row['vs_torch_fused']:.2f}x"
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
            moved = [f"{step_bytes.model(row, cpu).moved:g}" for row in rows]
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
    """One line on the runs that the rows come from: machine, versions, commits, days."""
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
    """The text of a page in a folder, with blocks made from the results of record, GPUs first."""
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
