"""Run the papers' own experiments with our optimizers; write their page and pictures.

    python -m bench.papers                   all of them; docs/papers.md, docs/papers/*.png
    python -m bench.papers --only 1 4        some, by number or name; the others' rows stay
    python -m bench.papers --only 4 --fresh  run again what has rows already
    python -m bench.papers --quick           smaller, in minutes; not recorded
    python -m bench.papers --larger --jobs 5 those with a larger size, which may need a GPU; writes
                                             rows only; a run without --larger puts them on the page

A task that has a row is not run again, so an interrupted run goes on where it was. If something
changed that tasks do not name (an experiment's code, the optimizers), use --fresh. All but
--larger fail if an asserted claim does not hold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..results import ROOT, check_place
from ..tables import bar
from . import page, runner
from .experiment import chosen, everything, name_of, verdict

STORED = ROOT / "bench" / "results" / "papers.json"
LARGER = ROOT / "bench" / "results" / "papers-larger.json"
QUICK = ROOT / "build" / "papers-quick.json"


def make_parser() -> argparse.ArgumentParser:
    names = ", ".join(f"{one.NUMBER} {name_of(one)}" for one in everything())
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Experiments: {names}.",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT")
    parser.add_argument(
        "--seeds", type=int, help="runs of each setting; default: the experiment's own"
    )
    parser.add_argument("--fresh", action="store_true", help="run tasks again that have rows")
    parser.add_argument("--quick", action="store_true", help="small sizes; not recorded")
    parser.add_argument("--larger", action="store_true", help="run at the larger size")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run tasks; default: 1")
    parser.add_argument(
        "--out", type=Path, help="file for the rows; page and pictures go beside it"
    )
    return parser


def options(arguments: list[str] | None) -> argparse.Namespace:
    found = make_parser().parse_args(arguments)
    if found.seeds is not None and found.seeds < 2:
        raise ValueError(f"--seeds is {found.seeds}; a spread needs at least 2")
    if found.jobs < 1:
        raise ValueError(f"--jobs is {found.jobs}; at least 1 process is needed")
    if found.larger and (found.quick or found.seeds):
        raise ValueError("--larger has tasks of its own; leave out --quick and --seeds")
    usual = LARGER if found.larger else QUICK if found.quick else STORED
    found.out = (found.out or usual).resolve()
    check_place(found.out)
    for other, stored in (("quick", STORED), ("larger", STORED), ("quick", LARGER)):
        if getattr(found, other) and found.out == stored:
            raise ValueError(f"--out is {stored}, which a {other} run must not write; give another")
    found.experiments = chosen(found.only)
    if found.larger:
        found.experiments = [one for one in found.experiments if hasattr(one, "larger_tasks")]
    sizes = (found.quick, found.seeds, found.larger)
    found.plan = [(one, runner.tasks_of(one, *sizes)) for one in found.experiments]
    if not found.plan:
        raise ValueError("--only names no experiment that has a larger size")
    devices = {task.get("device") for _, tasks in found.plan for task in tasks}
    if "cuda" in devices and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device, which the larger size needs")
    return found


def places(out: Path) -> tuple[Path, Path]:
    """Where the page and the pictures made from a file of rows go."""
    if out == STORED:
        return ROOT / "docs" / "papers.md", ROOT / "docs" / "papers"
    return out.with_suffix(".md"), out.with_suffix("")


def work(found: argparse.Namespace) -> None:
    with bar() as progress:
        done = progress.add_task("", total=sum(len(tasks) for _, tasks in found.plan))
        for label, more in runner.run(found.plan, found.out, found.fresh, found.jobs):
            progress.update(done, advance=more, description=label)


def report(found: argparse.Namespace) -> list[str]:
    """Write page and pictures, print the verdicts; return the asserted claims that do not hold."""
    from .plotting import draw  # matplotlib takes a second to load

    rows = runner.read(found.out)
    larger = runner.read(LARGER) if found.out == STORED else {}
    to, pictures = places(found.out)
    to.write_text(page.text(rows, pictures.name, larger), encoding="utf-8")
    failed = []
    for one in found.experiments:
        draw(one, rows[name_of(one)], pictures / f"{name_of(one)}.png")
        if more := runner.kept(larger, name_of(one)):
            draw(one, more, pictures / f"{name_of(one)}-larger.png")
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
        again = "the same command without --fresh" if found.fresh else "the same command"
        print(f"interrupted; {again} goes on from here", file=sys.stderr)
        return 130
    if found.larger:
        print(f"rows: {found.out}")
        return 0
    failed = report(found)
    for line in failed:
        print(f"expected to hold, but does not: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
