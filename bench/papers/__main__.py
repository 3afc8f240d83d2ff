"""Run the papers' own experiments with our optimizers; write their page and pictures.

    python -m bench.papers                   all of them; docs/papers.md, docs/papers/*.png
    python -m bench.papers --only 1 4        some, by number or name; the others' rows stay
    python -m bench.papers --only 4 --fresh  rows that are there are run again
    python -m bench.papers --quick           smaller ones, in minutes; fails where a claim fails

Rows of the same tasks are not run again, so an interrupted run goes on where it was. What a task
does not name (an experiment's code, the optimizers) may have changed since: --fresh.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..results import ROOT
from . import page, runner
from .experiment import chosen, everything, name_of, verdict

STORED = ROOT / "bench" / "results" / "papers.json"
QUICK = ROOT / "build" / "papers-quick.json"


def options(arguments: list[str] | None) -> argparse.Namespace:
    names = ", ".join(f"{one.NUMBER} {name_of(one)}" for one in everything())
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Experiments: {names}.",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT")
    parser.add_argument("--seeds", type=int, help="runs of everything random; default: by task")
    parser.add_argument("--fresh", action="store_true", help="run rows that are there again")
    parser.add_argument("--quick", action="store_true", help="small, asserting, not recorded")
    parser.add_argument("--out", type=Path, help="rows; page and pictures of others stand beside")
    found = parser.parse_args(arguments)
    if found.seeds is not None and found.seeds < 2:
        raise ValueError(f"--seeds is {found.seeds}; a spread needs at least 2")
    found.out = (found.out or (QUICK if found.quick else STORED)).resolve()
    if found.quick and found.out == STORED:
        raise ValueError(f"--out is {STORED}, which a quick run must not write; give another")
    found.experiments = chosen(found.only)
    return found


def places(out: Path) -> tuple[Path, Path]:
    """Page, and folder of pictures, of a file of rows."""
    if out == STORED:
        return ROOT / "docs" / "papers.md", ROOT / "docs" / "papers"
    return out.with_suffix(".md"), out.with_suffix("")


def work(found: argparse.Namespace) -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    total = sum(
        len(runner.rounded_tasks(one, found.quick, found.seeds)) for one in found.experiments
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=total)
        steps = runner.run(found.experiments, found.quick, found.seeds, found.out, found.fresh)
        for i, label in enumerate(steps):
            progress.update(bar, completed=i, description=label)


def report(found: argparse.Namespace) -> list[str]:
    """Write page and pictures; say the verdicts. Returns the asserted claims that do not hold."""
    from .plotting import draw  # matplotlib takes a second to load

    rows = runner.read(found.out)
    to, pictures = places(found.out)
    to.write_text(page.text(rows, pictures.name), encoding="utf-8")
    failed = []
    for one in found.experiments:
        draw(one, rows[name_of(one)], pictures / f"{name_of(one)}.png")
        claims = one.claims(rows[name_of(one)])
        print(f"{one.NUMBER} {name_of(one)}: {verdict(claims)}")
        failed += [f"{name_of(one)}: {c.text}" for c in claims if c.asserted and not c.holds]
    print(f"rows: {found.out}\npage: {to}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    try:
        found = options(arguments)
        runner.read(found.out)
    except ValueError as error:
        print(f"python -m bench.papers: {error}", file=sys.stderr)
        return 2
    # The order of sums, and so every row, would depend on the number of threads.
    torch.set_num_threads(1)
    try:
        work(found)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    failed = report(found)
    for line in failed:
        print(f"expected to hold, but does not: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
