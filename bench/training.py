"""Training steps of a small BERT: how much of one is the optimizer's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from . import peers
from .contenders import Contender
from .device import Clock
from .measure import WARM_UP, Run, Task, identity, require_steps, take_turns
from .papers import language
from .parameter_sets import ParameterSet

BATCH, WIDTH = 32, 128


def split(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters with decay and without, as Trainer groups them."""
    params = list(model.parameters())
    return [p for p in params if p.ndim > 1], [p for p in params if p.ndim == 1]


def parameter_set() -> ParameterSet:
    shapes = (tuple(tuple(p.shape) for p in part) for part in split(language.bert(0, WIDTH)))
    return ParameterSet("small-bert", tuple(shapes))


class Loop:
    """A model with one contender's optimizer."""

    def __init__(self, contender: Contender, clock: Clock):
        self.clock, self.model = clock, language.bert(0, WIDTH).to(clock.device)
        parts = zip(split(self.model), (1e-3, 0.0), strict=True)
        groups = [{"params": part, "weight_decay": decay} for part, decay in parts]
        self.optimizer = contender.build(groups)
        self.inputs, self.labels = (t.to(clock.device) for t in next(language.batches(0, BATCH)))

    def gradients(self) -> None:
        self.optimizer.zero_grad()
        self.model(input_ids=self.inputs, labels=self.labels).loss.backward()

    def seconds(self) -> tuple[float, float]:
        """Of a training step: all of it, and the optimizer's part."""
        before = self.clock.seconds(self.gradients)
        own = self.clock.seconds(self.optimizer.step)
        return before + own, own


def measure(run: Run, tasks: list[Task], clock: Clock, rounds: int) -> Iterator[Task]:
    """Measure every task beside torch's fused AdamW; yields each before it begins."""
    threads_before = torch.get_num_threads()
    try:
        for task in tasks:
            yield task
            torch.set_num_threads(task.threads)
            with run.attempt(task):
                run.rows.append(_row(task, clock, rounds))
    finally:
        torch.set_num_threads(threads_before)


def _row(task: Task, clock: Clock, rounds: int) -> dict[str, Any]:
    baseline = peers.baseline(task.contender.mode)
    loops = [Loop(each, clock) for each in (task.contender, baseline)]
    take_turns([loop.seconds for loop in loops], WARM_UP)
    require_steps(task.contender, loops[0].optimizer, WARM_UP)
    turns = take_turns([loop.seconds for loop in loops], rounds)
    own, theirs = ([statistics.median(part) for part in zip(*each)] for each in turns)
    return {
        **identity(task, clock),
        "phase": "training",
        "seconds": own[0],
        "optimizer_seconds": own[1],
        "optimizer_share": own[1] / own[0],
        "vs_torch_fused": theirs[1] / own[1],
    }
