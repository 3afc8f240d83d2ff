"""The plan of a step: which tensors, in which launches, with which tables.

A plan is built once and kept until a parameter moves or changes its layout, a gradient appears
where there was none, a state or a sum that a group keeps is replaced, or the optimizer drops it (a
group added, a state loaded, another variant or clipping chosen). In a step only gradient addresses
and hyper-parameters are brought up to date.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from . import checks, shards, state_tensors
from .backends import Backend, choose
from .launch import DTYPE_CODES, OWN_HYPERS, Entry, Kind, Launch, Pass
from .reference.multi_tensor_apply import facts
from .sparse import Touched
from .state_tensors import Slot
from .sums import Norm, Sums, first_slots
from .versions import Versions
from .watch import Watch, gatherer

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer

GRAD_NORM = "grad_norm"  # the rule whose sum is the squared norm of all gradients


class Round:
    """Passes that must all have run, over every launch, before the next round begins."""

    def __init__(self, works: list[tuple[Backend, Launch, Pass]]):
        self.works = works
        self._sums = list(dict.fromkeys(work.sums for _, _, work in works if work.facts.EMITS))

    def run(self) -> None:
        for backend, launch, work in self.works:
            backend.apply(launch, work)
        for sums in self._sums:
            sums.join()


class Plan:
    """The launches of one optimizer's step, and the facts they were planned on. It keeps no state
    alive and no memory of a parameter: who moves them elsewhere, to offload them, frees them. (The
    reference backend, which takes tensors, keeps them until the next step.)"""

    def __init__(
        self,
        optimizer: FusedOptimizer,
        launches: list[Launch],
        backends: dict[torch.device, Backend],
        touched: dict[int, Touched],
    ):
        self.launches = launches
        self.touched = touched  # by parameter; such a plan is for one step
        self.backend = optimizer.backend
        self.surveyed: tuple | None = None  # on what, see FusedOptimizer._run
        planned = {e.index: launch.grad_dtype for launch in launches for e in launch.entries}
        lists = _lists(optimizer)
        self._lost: list[weakref.ref] = []  # who died of those that were planned on
        self._lists, self._state = Watch(lists), Watch(optimizer.state, lost=self._lost)
        self._sums = Watch(optimizer.kept_sums(), lost=self._lost)
        self._params = [p for params in lists for p in params]
        self._dtypes = [planned.get(i) for i in range(len(self._params))]
        # A state may keep its tensor and lose its memory (`t.data = ...`); where one does, all do:
        # looking at all would take as long as the rest of a small step.
        ends = [e for launch in launches for e in (launch.entries[0], launch.entries[-1])]
        fixed = [t for e in ends for t in (e.step, *e.states, e.master, *e.carried)]
        fixed = [t for t in (*fixed, *optimizer.kept_sums()) if t is not None]
        self._fixed = [weakref.ref(t, self._lost.append) for t in fixed]
        served = [[self._params[e.index] for e in launch.entries] for launch in launches]
        states = (optimizer.state[p] for params in served for p in params)
        surveyed = (state[name] for state in states for name in optimizer.surveyed_states)
        self.versions = Versions(launches, served, surveyed)
        self._facts, self._gatherer = self._facts_now(), None
        if not touched and self.backend != "reference":  # which takes tensors, not addresses
            codes = [DTYPE_CODES.get(dtype, -1) for dtype in self._dtypes]
            places = {i: place for launch in launches for i, place in launch.gradient_places()}
            places = [places.get(i, 0) for i in range(len(codes))]
            self._gatherer = gatherer(self._params, codes, places, fixed)
            for launch in launches:
                launch.let_go()

        def round_of(passes: Iterable[Pass | None]) -> Round:
            pairs = zip(launches, passes, strict=True)
            on = ((backends[launch.device], launch, work) for launch, work in pairs)
            return Round([works for works in on if works[2] is not None])

        self._survey = round_of(launch.survey for launch in launches)
        passes = zip(*(launch.passes for launch in launches), strict=True)
        self._rounds = [round_of(launch.norm for launch in launches), *map(round_of, passes)]

    def rounds(self, survey: bool) -> list[Round]:
        """What to run, in order."""
        return [self._survey, *self._rounds] if survey else self._rounds

    def grad_norm_sq(self) -> torch.Tensor | None:
        """Where the squared norm of the gradients is, float64 ``[1]``; None without clipping."""
        norm = self.launches[0].norm if self.launches else None
        return None if norm is None else norm.sums.total

    def collect(self, optimizer: FusedOptimizer) -> tuple[bool, list | None] | None:
        """Enter this step's gradients into the launches' tables; return whether there is any, and
        the gradients where addresses do not suffice; or None where the plan no longer fits."""
        if (
            self._lost  # asked first: who died must not be looked for
            or self.backend != optimizer.backend
            or not self._lists.holds(_lists(optimizer))
            or not self._state.holds(optimizer.state)
            or not self._sums.holds(optimizer.kept_sums())
        ):
            return None
        if self._gatherer is not None:
            try:
                present = self._gatherer.gather()
            except (RuntimeError, BufferError):
                present = None  # a tensor that does not describe itself
            if present is not None:
                return present, None
        return self._collect_each()

    @torch.no_grad()
    def _collect_each(self) -> tuple[bool, list] | None:
        """The same, tensor by tensor, and gradients may have another layout."""
        try:
            if self._facts_now() != self._facts:
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

    def _facts_now(self) -> list[tuple | int]:
        """What the tables depend on, of every parameter that is in one, and of their states."""
        params = zip(self._params, self._dtypes, strict=True)
        planned = [shards.local(p) for p, dtype in params if dtype]
        facts = [(p.data_ptr(), p.shape, p.stride(), p.dtype) for p in planned]
        return facts + [t().data_ptr() for t in self._fixed]

    def _fit(self, grads: list[torch.Tensor | None]) -> bool:
        """Give gradients their parameter's layout and sign; False where one is not as planned."""
        for i, g in enumerate(grads):
            if g is None or i in self.touched:
                continue
            p = self._params[i]
            if not shards.alike(g, p):
                if shards.mesh_of(g) != shards.mesh_of(p):
                    return False
                g = g.redistribute(p.device_mesh, p.placements)
            g, p = shards.local(g), shards.local(p)
            grads[i] = g
            if checks.is_sparse(g) or checks.without_memory(g):
                return False
            if (g.dtype, g.shape, g.device) != (self._dtypes[i], p.shape, p.device):
                return False
            if g.is_neg() or not checks.same_layout(p, g):
                grads[i] = torch.empty_like(p, dtype=g.dtype).copy_(g)
        return True


class _Alike(NamedTuple):
    """What parameters of one group and dtype have in common."""

    group: int
    variant: int
    layout: dict[str, Slot]
    states: list[str]
    master: bool


def _alike(optimizer: FusedOptimizer, index: int, p: torch.Tensor) -> _Alike:
    group = optimizer.param_groups[index]
    return _Alike(
        index,
        optimizer.variant(group),
        optimizer.state_layout(p, group),
        list(optimizer.states(group)),
        optimizer.has_master(p),
    )


@torch.no_grad()
def make_plan(optimizer: FusedOptimizer) -> Plan:
    """Check every parameter and gradient, then make missing states, then the tables."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    numels = [0 if is_lazy(p) else shards.local(p).numel() for p in params]
    axes = [shards.axes(p) for p in params]
    planned: list[tuple[int, str, torch.Tensor, _Alike, list[str]]] = []
    known: dict[tuple[int, torch.dtype], _Alike] = {}
    i = -1
    for g, group in enumerate(optimizer.param_groups):
        for k, p in enumerate(group["params"]):
            i += 1
            state = optimizer.state.get(p, {})
            if p.grad is None and not state:
                continue
            where = optimizer.where(g, k)
            checks.parameter(where, p)
            if p.grad is not None:
                checks.gradient(where, p, p.grad, optimizer.why_not_sparse(group))
            optimizer.check_state(where, group, state)
            if (g, p.dtype) not in known:
                known[g, p.dtype] = _alike(optimizer, g, p)
            alike = known[g, p.dtype]
            unfit = state_tensors.check(where, state, p, alike.layout)
            planned.append((i, where, p, alike, unfit))
    devices = {p.device for _, _, p, *_ in planned}
    backends = {device: choose(optimizer.backend, device) for device in devices}
    checks.no_overlap([(where, shards.local(p)) for _, where, p, *_ in planned])
    segments = optimizer.segments() if optimizer.sums else []
    if segments:
        name = type(optimizer).__name__
        checks.one_device(name, [(segments[i], p) for i, _, p, *_ in planned])
        shards.check_segments(name, segments, axes)
    if optimizer.clips():
        checks.one_device("max_grad_norm", [(0, p) for _, _, p, *_ in planned])
        shards.check_place("max_grad_norm", [(where, p) for _, where, p, *_ in planned])

    slots = first_slots(numels)
    touched = {i: Touched(p.grad) for i, _, p, *_ in planned if checks.is_sparse(p.grad)}
    kinds: dict[Kind, list[Entry]] = {}
    for i, _, p, alike, unfit in planned:
        state_tensors.complete(optimizer.state[p], p, alike.layout, unfit)
        kind, entry = _entry(optimizer, i, p, alike, touched.get(i))
        kinds.setdefault(kind, []).append(entry)
    hypers = OWN_HYPERS + len(optimizer.hypers)
    launches = [
        Launch(kind, entries, sorted({e.group for e in entries}), hypers, slots)
        for kind, entries in kinds.items()
    ]
    for device in devices:
        here = [launch for launch in launches if launch.device == device]
        indices = [e.index for launch in here for e in launch.entries]
        sums = norm = None
        if optimizer.sums:
            totals = optimizer.segment_totals(device)
            of_segments = list(dict(zip(segments, axes, strict=True)).values())  # alike in each
            sums = Sums(
                optimizer.sums, numels, segments, indices, device,
                totals=totals, axes=of_segments, counted=facts(optimizer.rule, 0).COUNTED,
            )  # fmt: skip
        if optimizer.clips():
            norm = Norm(numels, axes, indices, device)
        for launch in here:
            _plan_passes(optimizer, launch, sums, norm)
    return Plan(optimizer, launches, backends, touched)


def _entry(
    optimizer: FusedOptimizer, index: int, p: torch.Tensor, alike: _Alike, touched: Touched | None
) -> tuple[Kind, Entry]:
    """A parameter's place in the tables."""
    state = optimizer.state[p]
    memory = shards.local if touched is None else touched.gather
    entry = Entry(
        index=index,
        group=alike.group,
        param=memory(p),
        master=memory(state[state_tensors.MASTER]) if alike.master else None,
        step=state["step"],
        states=[memory(state[name]) for name in alike.states],
        carried=[state[name] for name in optimizer.carried],
    )
    kind = Kind(
        device=p.device,
        variant=alike.variant,
        param_dtype=p.dtype,
        grad_dtype=p.dtype if p.grad is None else p.grad.dtype,
        exp_avg_dtype=entry.states[0].dtype,
        master=alike.master,
    )
    return kind, entry


def _plan_passes(
    optimizer: FusedOptimizer, launch: Launch, sums: Sums | None, norm: Norm | None
) -> None:
    rule, variant = optimizer.rule, launch.kind.variant
    launch.passes = [launch.plan_pass(rule, variant | bits, sums) for bits in optimizer.passes]
    if optimizer.survey is not None:
        launch.survey = launch.plan_pass(rule, variant | optimizer.survey, sums)
    if norm is not None:
        launch.norm = launch.plan_pass(GRAD_NORM, 0, norm)


def _lists(optimizer: FusedOptimizer) -> list[list[torch.Tensor]]:
    return [group["params"] for group in optimizer.param_groups]
