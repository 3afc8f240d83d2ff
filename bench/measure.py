"""Times of steps: each contender, torch's fused AdamW and the yardstick take turns in one process.

Whatever else the machine does then slows all three alike, and their ratios stay.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch

from . import peers, step_bytes
from .contenders import OURS, Contender, fade
from .device import Clock
from .parameter_sets import ParameterSet

WARM_UP, FEWEST = 3, 5
PATIENCE = 10.0  # seconds after which a comparison ends, if it has the fewest rounds
REBUILDS = 7  # a plan is built anew this often
SPARE = 0.95  # of the free memory may be taken


class Side:
    """A contender's optimizer over its own parameters and gradients."""

    def __init__(self, contender: Contender, parameter_set: ParameterSet, clock: Clock):
        self.contender, self.clock = contender, clock
        self.groups = [
            {
                "params": [self._parameter(shape) for shape in shapes],
                "weight_decay": 0.0 if i % 2 else 1e-3,
            }
            for i, shapes in enumerate(parameter_set.groups)
        ]
        self.params = [p for group in self.groups for p in group["params"]]
        self.optimizer = self.build()
        for p, gradient in zip(self.params, self._gradients(parameter_set.bucket), strict=True):
            p.grad = gradient

    def _parameter(self, shape) -> torch.nn.Parameter:
        mode = self.contender.mode
        return mode.parameter(torch.randn(shape, dtype=mode.param, device=self.clock.device))

    def _gradients(self, bucket: bool) -> list[torch.Tensor]:
        dtype = self.contender.mode.grad
        if not bucket:
            return [torch.randn_like(p, dtype=dtype) for p in self.params]
        sizes = [p.numel() for p in self.params]
        buffer = torch.randn(1 + sum(sizes), dtype=dtype, device=self.clock.device)
        parts = buffer[1:].split(sizes)
        return [part.view_as(p) for p, part in zip(self.params, parts, strict=True)]

    def build(self) -> torch.optim.Optimizer:
        return self.contender.build([dict(group) for group in self.groups])

    def step(self) -> None:
        self.optimizer.step()

    def start(self) -> None:
        """Take the first steps, to the state in which steps are measured."""
        self.step()
        if self.contender.fades:
            fade(self.optimizer)
        for _ in range(WARM_UP - 1):
            self.step()
        self.clock.synchronize()

    def device_step(self) -> float:
        return self.clock.seconds(self.step)

    # The host's time, with nothing of the device's

    def _host(self) -> float:
        self.clock.synchronize()
        begin = time.perf_counter()
        self.step()
        return time.perf_counter() - begin

    def first(self) -> float:
        self.optimizer = self.build()
        return self._host()

    def fresh(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        for p in self.params:
            p.grad = torch.ones_like(p, dtype=self.contender.mode.grad)
        return self._host()

    def scheduled(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * 0.999
        return self.fresh()

    def unchanged(self) -> float:
        return self._host()

    def loaded(self) -> float:
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self._host()


DEVICE_PHASES = {"step": Side.device_step}
HOST_PHASES = {
    "first": Side.first,
    "fresh": Side.fresh,
    "scheduled": Side.scheduled,
    "unchanged": Side.unchanged,
    "loaded": Side.loaded,
}


def take_turns(clocks: list[Callable[[], Any]], rounds: int) -> list[list[Any]]:
    """What every clock says when they take turns, in reversed order in every second round."""
    times: list[list[Any]] = [[] for _ in clocks]
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() - begin > PATIENCE:
            break
        turns = list(zip(clocks, times, strict=True))
        for clock, own in reversed(turns) if turn % 2 else turns:
            own.append(clock())
    return times


@dataclass(frozen=True)
class Task:
    parameter_set: ParameterSet
    contender: Contender
    threads: int

    @property
    def label(self) -> str:
        return f"{self.contender.label} {self.parameter_set.name}"

    @property
    def against(self) -> tuple:
        """Tasks that agree in this share the optimizer that they are compared with."""
        return self.parameter_set, self.contender.mode, self.threads


@dataclass
class Run:
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # label: why
    left_out: list[tuple[Task, float, float]] = field(default_factory=list)  # bytes: needed, free
    interrupted: bool = False

    @contextmanager
    def attempt(self, task: Task) -> Iterator[None]:
        """What a task raises is kept for the end, in one line."""
        try:
            with peers.quiet():
                yield
        except Exception as error:
            first_line = (str(error).strip() or "no message").splitlines()[0]
            self.failed[task.label] = f"{type(error).__name__}: {first_line}"


def measure(run: Run, tasks: list[Task], clock: Clock, rounds: int) -> Iterator[Task]:
    """Measure every task; yields each before it begins, for a progress bar."""
    threads_before, yardstick = torch.get_num_threads(), clock.yardstick_step()
    try:
        for (_, _, threads), group in groupby(tasks, lambda task: task.against):
            torch.set_num_threads(threads)
            yield from _compare(run, list(group), clock, yardstick, rounds)
    finally:  # also of a run that was interrupted
        torch.set_num_threads(threads_before)
        fill_ratios(run.rows)


def _compare(
    run: Run, tasks: list[Task], clock: Clock, yardstick: Callable[[], object], rounds: int
) -> Iterator[Task]:
    """Measure tasks that share a baseline."""
    baseline, other = peers.baseline(tasks[0].contender.mode), None
    for task in tasks:
        yield task
        with run.attempt(task):
            held = [step_bytes.model(one, clock.device).held for one in (task.contender, baseline)]
            free = clock.free_bytes() + (step_bytes.held(other.optimizer) if other else 0)
            need = task.parameter_set.parameters * sum(held)
            if need > SPARE * free:
                run.left_out.append((task, need, free))
                continue
            other = other or Side(baseline, task.parameter_set, clock)
            side = Side(task.contender, task.parameter_set, clock)
            run.rows += _rows(task, side, other, yardstick, rounds)
        side = None
        clock.tidy()


def require_steps(contender: Contender, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Raise if ours, on a backend that may be a user's own, left out steps: it would seem fast."""
    if contender.maker != OURS:
        return
    counts = {int(state["step"]) for state in optimizer.state.values()}
    if counts != {steps}:
        raise RuntimeError(f"after {steps} steps the counts are {counts}: it leaves some out")


def _rows(
    task: Task, side: Side, other: Side, yardstick: Callable[[], object], rounds: int
) -> list[dict[str, Any]]:
    clock, small = side.clock, task.parameter_set.small
    for each in (side, other):
        each.start()
    require_steps(task.contender, side.optimizer, WARM_UP)
    rows = []
    for phase, method in (HOST_PHASES if small else DEVICE_PHASES).items():
        turns = REBUILDS if phase in ("first", "loaded") else rounds * (10 if small else 1)
        ours, others = (partial(method, each) for each in (side, other))
        # As every second round is reversed, who ends a round begins the next one, its data still in
        # caches. That happens to both sides equally often, and never to the yardstick.
        between = [partial(clock.seconds, yardstick)] if phase in DEVICE_PHASES else []
        own, *its, theirs = take_turns([ours, *between, others], turns)
        rows.append({**identity(task, clock), "phase": phase, **_spread(own)})
        rows[-1]["baseline_seconds"] = statistics.median(theirs)
        rows[-1]["baseline_bytes"] = step_bytes.moved(other.optimizer)
        if its:
            rows[-1]["yardstick"] = clock.BYTES / statistics.median(its[0])
    facts = {
        "bytes": step_bytes.moved(side.optimizer, task.contender.fades),
        "held_bytes": step_bytes.held(side.optimizer),
        "peak_extra_bytes": clock.peak_extra_bytes(side.step),
        **clock.calls(side.optimizer),
    }
    return [{**row, **facts} for row in rows]


def identity(task: Task, clock: Clock) -> dict[str, Any]:
    own, chosen = task.contender, task.parameter_set
    return {
        "set": chosen.name,
        "maker": own.maker,
        "algorithm": own.algorithm,
        "form": own.form,
        "backend": own.backend,
        "dtype": own.mode.id,
        "device": clock.device.type,
        "threads": task.threads,
        "tensors": chosen.tensors,
        "parameters": chosen.parameters,
        "groups": len(chosen.groups),
    }


def quartiles(values: list[float]) -> list[float]:
    """The first, the median and the third."""
    return statistics.quantiles(values, n=4, method="inclusive")


def _spread(times: list[float]) -> dict[str, Any]:
    q1, median, q3 = quartiles(times)
    return {"seconds": median, "q1": q1, "q3": q3, "least": min(times), "rounds": len(times)}


# What a row and its peers' rows agree in.
SAME = ("set", "algorithm", "dtype", "device", "threads", "phase")


def fill_ratios(rows: list[dict[str, Any]]) -> None:
    """Bandwidths, and how many times as fast a row is as others of the same run."""
    fastest: dict[tuple, tuple[float, str]] = {}
    for row in rows:
        row["vs_torch_fused"] = row["baseline_seconds"] / row["seconds"]
        more_bytes = row["bytes"] / row.pop("baseline_bytes")
        if row["phase"] in DEVICE_PHASES:
            row["bytes_per_second"] = row["bytes"] / row["seconds"]
            row["yardstick_share"] = row["bytes_per_second"] / row["yardstick"]
            row["bandwidth_vs_torch_fused"] = row["vs_torch_fused"] * more_bytes
        if row["maker"] not in (OURS, peers.BASELINE):
            key = tuple(row[name] for name in SAME)
            fastest[key] = max(fastest.get(key, (0.0, "")), (row["vs_torch_fused"], row["maker"]))
    for row in rows:
        peer = fastest.get(tuple(row[name] for name in SAME))
        if row["maker"] == OURS and peer:
            # By way of the baseline, which each took turns with: a busy machine slows both alike.
            row["vs_fastest_peer"] = row["vs_torch_fused"] / peer[0]
            row["fastest_peer"] = peer[1]
