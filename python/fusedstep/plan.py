"""The plan of a step: which tensors, in which launches, with which tables.

A plan is kept as long as what it was built on stays as it was (docs/design.md lists what ends it).
In a step only gradient addresses and hyper-parameters are brought up to date.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from . import memory, native, shards
from .backends import Backend
from .launch import DTYPE_CODES, Launch, Pass
from .sparse import Touched
from .watch import Watch
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
    """The launches of one optimizer's step, and the facts they were planned on. It keeps no state
    alive and no memory of a parameter, so that moving them elsewhere frees their memory. (The
    reference backend, which takes tensors, keeps them until the next step.)"""

    def __init__(
        self,
        optimizer: FusedOptimizer,
        launches: list[Launch],
        backends: dict[torch.device, Backend],
        touched: dict[int, Touched],
        displaced: set[int],
    ):
        self.launches = launches
        self.touched = touched  # by parameter; such a plan is for one step
        self._backends, self._streams = backends, _streams(backends)
        self._surveyed: tuple | None = None  # what the sums depended on in the last step
        planned = {e.index: launch.grad_dtype for launch in launches for e in launch.entries}
        for i in displaced:
            del planned[i]  # a gradient of theirs calls for another plan
        lists = _lists(optimizer)
        self._lost: list[weakref.ref] = []  # tensors of the plan that no longer exist
        self._lists, self._state = Watch(lists), Watch(optimizer.state, lost=self._lost)
        self._sums = Watch(optimizer.kept_sums(), lost=self._lost)
        self._params = [p for params in lists for p in params]
        self._dtypes = [planned.get(i) for i in range(len(self._params))]
        # Parameters that have stepped but are in no launch: whether that is right may change with
        # their memory.
        aside = (p for p, dtype in zip(self._params, self._dtypes, strict=True) if dtype is None)
        self._aside = [p for p in aside if "step" in optimizer.state.get(p, {})]
        self._looked = [*map(_look, self._aside)]
        # A state may keep its tensor and lose its memory (`t.data = ...`). If one does, usually all
        # do, and looking at all would take as long as the rest of a small step.
        ends = [e for launch in launches for e in (launch.entries[0], launch.entries[-1])]
        held = [t for e in ends for t in (e.step, *e.states, e.master, *e.carried)]
        fixed = [t for t in (*held, *optimizer.kept_sums()) if t is not None]
        self._fixed = [weakref.ref(t, self._lost.append) for t in fixed]
        served = [[self._params[e.index] for e in launch.entries] for launch in launches]
        states = (optimizer.state[p] for params in served for p in params)
        surveyed = (state[name] for state in states for name in optimizer.surveyed_states)
        self.write_counts = WriteCounts(launches, served, surveyed)
        self._basis, self._gatherer = self._basis_now(), None
        # The reference takes tensors, not addresses; and a sparse step puts back what it gathered.
        self._by_address = not touched and optimizer.backend != "reference"
        if self._by_address:
            codes = [-1 if dtype is None else DTYPE_CODES[dtype] for dtype in self._dtypes]
            places = [0] * len(codes)
            for launch in launches:
                for i, place in launch.gradient_places():
                    places[i] = place
            self._gatherer = _gatherer(self._params, codes, places, fixed)

        def round_of(passes: Iterable[Pass | None]) -> Round:
            pairs = zip(launches, passes, strict=True)
            return Round(
                [(backends[on.device], on, work) for on, work in pairs if work is not None]
            )

        self._survey = round_of(launch.survey for launch in launches)
        passes = zip(*(launch.passes for launch in launches), strict=True)
        self._rounds = [round_of(launch.norm for launch in launches), *map(round_of, passes)]

    def rounds(self, optimizer: FusedOptimizer, capturing: bool = False) -> list[Round]:
        """What the next step runs, in order: with a survey first where its sums are not of what
        there is now, which is remembered, unless the step is only recorded."""
        if optimizer.survey is None:
            return self._rounds
        before = self._surveyed
        now = options, writes = optimizer.surveyed_on(), self.write_counts.surveyed()
        self._surveyed = None if capturing else now
        if before and all(map(_same, options, before[0])) and writes == before[1]:
            return self._rounds
        return [self._survey, *self._rounds]

    def for_later(self) -> Plan | None:
        """This plan, if more steps can have it. From now on it keeps no state alive, as it does in
        its first step: another thread that takes its own may put other states in their place."""
        if self._by_address:
            for launch in self.launches:
                launch.let_go()
        return None if self.touched else self

    def backends_in_use(self) -> dict[str, str]:
        """The names of backends, by device."""
        return {str(device): backend.name for device, backend in self._backends.items()}

    def grad_norm_sq(self) -> torch.Tensor | None:
        """Where the squared norm of the gradients is, float64 ``[1]``; None without clipping."""
        norm = self.launches[0].grad_norm if self.launches else None
        return None if norm is None else norm.total

    def collect(
        self, optimizer: FusedOptimizer, captured: bool = False
    ) -> tuple[bool, list] | None:
        """Enter this step's gradients into the launches' tables; return whether there is any, and
        the gradients, to be kept while the tables have their addresses; or None where the plan no
        longer fits."""
        if (
            self._lost  # checked first: a tensor that is gone must not be looked for
            # Tables return to the stream that they were made on, while another may still read them,
            # unless a graph that captured them keeps them.
            or (self._streams and not captured and self._streams != _streams(self._streams))
            or not self._lists.holds(_lists(optimizer))
            or not self._state.holds(optimizer.state)
            or not self._sums.holds(optimizer.kept_sums())
            or (self._aside and [*map(_look, self._aside)] != self._looked)
        ):
            return None
        if self._gatherer is not None:
            try:
                found = self._gatherer.gather()
            except (RuntimeError, BufferError):
                found = None  # a tensor that does not describe itself
            if found is not None:
                return found
        return self._collect_each()

    @torch.no_grad()
    def _collect_each(self) -> tuple[bool, list] | None:
        """The same, tensor by tensor, and gradients may have another layout."""
        try:
            if self._basis_now() != self._basis:
                return None
        except RuntimeError:
            return None  # memory without an address
        grads = [
            self.touched[i].grad if i in self.touched else p.grad
            for i, p in enumerate(self._params)
        ]
        if not self._fit(grads):
            return None
        for launch in self.launches:
            launch.set_gradients(grads)
        return any(g is not None for g in grads), grads

    def _basis_now(self) -> list[Any]:
        """What the tables depend on, of every parameter that is in one, and of their states."""
        params = zip(self._params, self._dtypes, strict=True)
        basis: list[Any] = [_look(p) for p, dtype in params if dtype]
        return basis + [t.data_ptr() for ref in self._fixed if (t := ref()) is not None]

    def _fit(self, grads: list[torch.Tensor | None]) -> bool:
        """Give gradients their parameter's layout and sign; False where one is not as planned."""
        for i, g in enumerate(grads):
            if g is None or i in self.touched:
                continue
            p = self._params[i]
            if shards.mesh_of(g) != shards.mesh_of(p):
                return False
            g, p = shards.local(shards.distributed_like(g, p)), shards.local(p)
            grads[i] = g
            if memory.is_sparse(g) or memory.is_missing(g):
                return False
            if (g.dtype, g.shape, g.device) != (self._dtypes[i], p.shape, p.device):
                return False
            if not memory.same_layout(p, g):
                grads[i] = torch.empty_like(p, dtype=g.dtype).copy_(g)
        return True


def _gatherer(
    params: list[torch.Tensor], dtypes: list[int], places: list[int], fixed: list[torch.Tensor]
):
    """What reads and checks gradients without Python's attribute calls (csrc/gather.h); None before
    torch 2.10, and where a parameter is no tensor or makes its gradient itself."""
    if native.module is None or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return None
    try:
        dtensor = shards.dtensor_type()
        return native.module.Gatherer(torch.Tensor, dtensor, params, dtypes, places, fixed)
    except (ImportError, RuntimeError, BufferError):  # of tensors that do not describe themselves
        return None


def _same(a: Any, b: Any) -> bool:
    """Equality that never compares tensors by value, which would wait for the device."""
    return a is b or (isinstance(a, Real) and isinstance(b, Real) and a == b)


def _streams(devices: Iterable[torch.device]) -> dict[torch.device, torch.Stream]:
    """The current stream of every GPU among some devices."""
    return {
        device: torch.cuda.current_stream(device) for device in devices if device.type == "cuda"
    }


def _look(p: torch.Tensor) -> tuple | None:
    """What of a parameter a plan depends on; None where it has no address."""
    try:
        p = shards.local(p)
        return p.data_ptr(), p.shape, p.stride(), p.dtype, p.device
    except RuntimeError:
        return None


def _lists(optimizer: FusedOptimizer) -> list[list[torch.Tensor]]:
    return [group["params"] for group in optimizer.param_groups]
