"""Tasks in, rows out, kept in one JSON file from which an interrupted run goes on."""

from __future__ import annotations

import json
import math
import multiprocessing
import platform
import signal
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import fusedstep
import numpy as np
import torch

from ..results import write_whole
from .experiment import Row, Task, load, name_of

DIGITS = 5  # of a stored number
UNFINISHED = " (unfinished)"  # follows an experiment's name while some of its tasks have no row
Rows = dict[str, list[Row]]  # by experiment


def rounded(value: Any) -> Any:
    """A result as JSON stores it; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): rounded(entry) for key, entry in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return rounded(value.tolist())
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def read(path: Path) -> Rows:
    """The rows of a file, none where there is no file yet.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert all({"task", "result"} <= row.keys() for rows in found.values() for row in rows)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold rows of this program; give another --out, or delete it"
        ) from error
    return found


def kept(rows: Rows, name: str) -> list[Row]:
    """The rows of an experiment, of all or of some of its tasks."""
    return rows.get(name) or rows.get(name + UNFINISHED, [])


def write(path: Path, rows: Rows) -> None:
    """One line for each row."""
    parts = [
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, found)) + "\n]"
        for name, found in sorted(rows.items())
    ]
    write_whole(path, "{\n" + ",\n".join(parts) + "\n}\n")


def perform(experiment: ModuleType, task: Task) -> Row:
    start = time.perf_counter()
    result = experiment.run(task)
    return {
        "task": task,
        "result": rounded(result),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {
            "fusedstep": fusedstep.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(1)


def attempt(name: str, task: Task) -> Row | Exception:
    """Perform in a worker process: an error is returned, so that the other tasks still run."""
    try:
        return perform(load(name), task)
    except Exception as error:
        traceback.print_exc()
        return error


def performed(experiment: ModuleType, tasks: list[Task], jobs: int) -> Iterator[Row]:
    """Rows in the order in which they finish; several jobs run in as many processes.

    Raises:
        Exception: with one job, what a task raises; with several, the first error, once all ran.
    """
    if jobs == 1 or not tasks:
        yield from (perform(experiment, task) for task in tasks)
        return
    failed = []
    # Spawned, because a forked process cannot use CUDA that this one has initialised.
    with multiprocessing.get_context("spawn").Pool(jobs, prepare_worker) as pool:
        for row in pool.imap_unordered(partial(attempt, name_of(experiment)), tasks):
            if isinstance(row, Exception):
                failed.append(row)
            else:
                yield row
    if failed:
        raise failed[0]


def run(
    plan: list[tuple[ModuleType, list[Task]]], out: Path, fresh: bool = False, jobs: int = 1
) -> Iterator[tuple[str, int]]:
    """Run the tasks that a file has no rows of; yields a label, and how many more tasks have one.

    Rows of present tasks stay unless ``fresh``; rows of an experiment's former tasks are dropped
    once it is finished.
    """
    rows = read(out)
    for experiment, tasks in plan:
        name = name_of(experiment)
        if fresh:
            rows = {key: held for key, held in rows.items() if key not in (name, name + UNFINISHED)}
        old = [*rows.get(name, ()), *rows.get(name + UNFINISHED, ())]
        found = {json.dumps(row["task"]): row for row in old}
        lacking = [task for task in tasks if json.dumps(task) not in found]
        label = f"{experiment.NUMBER} {name}"
        yield label, len(tasks) - len(lacking)
        for row in performed(experiment, lacking, jobs):
            found[json.dumps(row["task"])] = row
            rows[name + UNFINISHED] = list(found.values())
            write(out, rows)
            yield label, 1
        rows[name] = [found[json.dumps(task)] for task in tasks]
        rows.pop(name + UNFINISHED, None)
    write(out, rows)


def tasks_of(
    experiment: ModuleType, quick: bool, seeds: int | None, larger: bool = False
) -> list[Task]:
    """Tasks as JSON gives them back, so that they compare equal to stored ones."""
    size = () if larger else (quick, seeds or experiment.SEEDS)
    make = experiment.larger_tasks if larger else experiment.tasks
    return json.loads(json.dumps(make(*size)))
