"""The benchmark checks itself: it must see a slow-down that it is given, and none where none is."""

from __future__ import annotations

import torch

from .device import Clock
from .measure import Side, Task, quartiles, take_turns

NEAR = 0.1  # what the median may be off by
ROUNDS = 301


class Slow(Side):
    """A side whose every step takes exactly twice its time."""

    def step(self) -> None:
        self.clock.twice(self.optimizer.step)


def ratios(sides: list[Side]) -> list[float]:
    """How many times as long the second side's step takes, in each round."""
    for side in sides:
        side.start()
    times = take_turns([side.device_step for side in sides], ROUNDS)
    return [b / a for a, b in zip(*times, strict=True)]


def sees(found: list[float], factor: float) -> bool:
    """Whether a factor lies within the spread of what was measured, and the median is near."""
    q1, median, q3 = quartiles(found)
    reach = 1.5 * (q3 - q1)
    return q1 - reach <= factor <= q3 + reach and abs(median / factor - 1) <= NEAR


def self_check(task: Task, clock: Clock) -> bool:
    """Whether an equal and a slow side were seen as they are; prints a line for each."""
    passed, contender = True, task.contender
    print(task.label)
    torch.set_num_threads(task.threads)
    for kind, factor in ((Side, 1.0), (Slow, 2.0)):
        sides = [each(contender, task.parameter_set, clock) for each in (Side, kind)]
        found = ratios(sides)
        right = sees(found, factor) and not sees(found, 3.0 - factor)
        q1, median, q3 = quartiles(found)
        verdict = "seen" if right else "NOT SEEN"
        print(f"x {factor:g} put in: x {median:.3f} ({q1:.3f} .. {q3:.3f}): {verdict}")
        passed &= right
    return passed
