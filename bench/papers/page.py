"""docs/papers.md, from stored rows alone."""

from __future__ import annotations

import textwrap
from types import ModuleType

from .. import tables
from . import not_run
from .experiment import Table, everything, name_of, verdict
from .runner import Rows, kept

HEAD = """\
# The papers' own experiments

The experiments that the papers report, run with this project's optimizers (`form="paper"`, backend
`cpu`) at a size that two CPU cores can handle. `make papers` runs them, and writes this page and
its pictures from `bench/results/papers.json`; nobody edits them by hand. Each experiment is a file
of [bench/papers](../bench/papers), which has every number of its setting.

Each claim listed under a verdict states the criterion that decides it. The verdict is *holds* if
all claims hold, *holds partly* if some do, and *does not hold here* if none does. Each setting says
what was assumed where the paper leaves something open. The papers seldom give thresholds; those
here are ours. The measures and claims of 2, 3, 5, 7 and 10 were settled after a first look at
results. The numbers in the tables count for more than the verdicts.
"""


def text(rows: Rows, pictures: str, larger: Rows) -> str:
    """The page; ``pictures`` is the folder of the pictures, relative to the page."""
    experiments = everything()
    parts = [HEAD, markdown(overview(experiments, rows))]
    for one in experiments:
        name = name_of(one)
        parts.append(section(one, rows.get(name, []), pictures, kept(larger, name)))
    parts += [f"## {not_run.NUMBER}. {not_run.TITLE}", markdown(not_run.EXPERIMENTS)]
    parts += [prose(not_run.LEFT_OUT)]
    parts += [markdown(not_run.OPTIONS), foot(rows)]
    return "\n".join(part.strip() + "\n" for part in parts)


def overview(experiments: list[ModuleType], rows: Rows) -> Table:
    lines = []
    for one in experiments:
        found = rows.get(name_of(one))
        claims = one.claims(found) if found else []
        held = f"{sum(claim.holds for claim in claims)} of {len(claims)}" if found else ""
        said = verdict(claims) if found else "not run yet"
        lines.append([str(one.NUMBER), one.TITLE, one.PAPER, runs(found or []), said, held])
    header = ["", "experiment", "paper", "runs of each", "verdict", "claims that hold"]
    return Table(header, lines, words=True)


def runs(rows: list) -> str:
    """How many runs differ only in what is drawn; "2, 5" if parts of an experiment differ."""
    seeds = {row["task"]["seed"] for row in rows if "seed" in row["task"]}
    counts = {row["task"].get("runs", len(seeds) or 1) for row in rows}
    return ", ".join(map(str, sorted(counts)))


def section(experiment: ModuleType, rows: list, pictures: str, larger: list) -> str:
    title = f"## {experiment.NUMBER}. {experiment.TITLE}\n\n{experiment.PAPER}.\n"
    parts = [title, prose(f"**Claim.** {experiment.CLAIM}")]
    parts.append(prose(f"**Setting.** {experiment.SETTING}"))
    if not rows:
        return "\n".join([*parts, "Not run yet."])
    claims = experiment.claims(rows)
    said = verdict(claims)
    parts += [markdown(table) for table in experiment.tables(rows)]
    parts.append(f"![{experiment.TITLE}]({pictures}/{name_of(experiment)}.png)\n")
    listed = "".join(f"* {'yes' if c.holds else '**no**'}: {c.text}\n" for c in claims)
    parts.append(f"**Verdict: {said}.**\n\n{listed}")
    parts.append(prose(experiment.WHY))
    if larger:
        told = f"{len(larger)} of {len(experiment.larger_tasks())} runs are done."
        parts.append(prose(f"**At a larger size.** {experiment.LARGER} {told}"))
        parts += [markdown(table) for table in experiment.tables(larger)]
        picture = f"{pictures}/{name_of(experiment)}-larger.png"
        parts.append(f"![{experiment.TITLE}, larger]({picture})\n")
    return "\n".join(parts)


def prose(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def markdown(table: Table) -> str:
    return tables.markdown(table.header, table.lines, table.header if table.words else ())


def foot(rows: Rows) -> str:
    every = [row for found in rows.values() for row in found]
    known = sorted({f"torch {row['versions']['torch']}" for row in every})
    minutes = sum(row["seconds"] for row in every) / 60
    return f"\nAll rows together: {minutes:.0f} minutes of one core, {', '.join(known)}.\n"
