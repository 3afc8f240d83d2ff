"""The plan of a step: which tensors, in which launches, with which tables.

A plan is kept as long as what it was built on stays as it was (docs/design.md lists what ends it;
gather.py looks). In a step only gradient addresses and hyper-parameters are brought up to date.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from .backends import Backend
from .gather import Gatherer
from .launch import Launch, Pass
from .sparse import Touched
from .write_counts import WriteCounts

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer


class Round:
    """Passes that must all have run, over every launch, before the next round begins."""

    def __init__(self, works: list[tuple[Backend, Launch, Pass]]):
        self.works = works
        emitted = (work.sums for _, _, work in works if work.facts.EMITS)
        self._sums = [sums for sums in dict.fromkeys(emitted) if sums is not None]

    def run(self) -> None:
        for backend, launch, work in self.works:
            backend.apply(launch, work)
        for sums in self._sums:
            sums.join()


class Plan:
    """The launches of one optimizer's step, and what the next step runs. It keeps no state alive
    and no memory of a parameter, so that moving them elsewhere frees their memory. (A backend
    that takes tensors keeps them until the next step.)"""

    def __init__(
        self,
        optimizer: FusedOptimizer,
        launches: list[Launch],
        backends: dict[torch.device, Backend],
        touched: dict[int, Touched],
        sharing: set[int],
        names: set[str],
        resumed: bool,
    ):
        self.launches = launches
        #: the names of backends, by device
        self.backends_in_use = {str(device): each.name for device, each in backends.items()}
        self.touched = touched  # by parameter; such a plan is for one step
        self._surveyed: tuple | None = None  # what the sums depended on in the last step
        params = [p for group in optimizer.param_groups for p in group["params"]]
        served = [[params[e.index] for e in launch.entries] for launch in launches]
        states = (optimizer.state[p] for params in served for p in params)
        surveyed = (state[name] for state in states for name in optimizer.surveyed_states)
        self.write_counts = WriteCounts(launches, served, surveyed, resumed)
        # Native code would refuse a sparse gradient, in each step.
        takes_tensors = any(backend.takes_tensors for backend in backends.values())
        by_address = not touched and not takes_tensors
        self.gatherer = Gatherer(optimizer, launches, touched, sharing, names, by_address)
        self._to_let_go = launches if by_address else []  # after the first step
        norm = launches[0].norm_sums if launches else None
        self.grad_norm_sq = None if norm is None else norm.total  #: float64 [1]; None: not taken

        def round_of(passes: Iterable[Pass | None]) -> Round:
            pairs = zip(launches, passes, strict=True)
            return Round(
                [(backends[on.device], on, work) for on, work in pairs if work is not None]
            )

        self._survey = round_of(launch.survey for launch in launches)
        passes = zip(*(launch.passes for launch in launches), strict=True)
        rounds = [round_of(launch.norm for launch in launches), *map(round_of, passes)]
        self._rounds = [each for each in rounds if each.works]

    def rounds(self, optimizer: FusedOptimizer, capturing: bool = False) -> list[Round]:
        """What the next step runs, in order: a survey first, if the sums are not those of the
        present states and options. These are remembered, unless the step is only recorded."""
        if optimizer.survey is None:
            return self._rounds
        before = self._surveyed
        now = options, writes = optimizer.surveyed_on(), self.write_counts.surveyed()
        self._surveyed = None if capturing else now
        if before and all(map(_same, options, before[0])) and writes == before[1]:
            return self._rounds
        return [self._survey, *self._rounds]

    def for_later(self) -> Plan | None:
        """This plan, if later steps can use it. From now on it keeps no state alive. In its first
        step it does, because a step in another thread may replace the states."""
        for launch in self._to_let_go:
            launch.let_go()
        self._to_let_go = []
        return None if self.touched else self


def _same(a: Any, b: Any) -> bool:
    """Equality that never compares tensors by value, which would wait for the device."""
    return a is b or (isinstance(a, Real) and isinstance(b, Real) and a == b)
