"""How a step is planned: what is checked, what states lack, and which tensors share a launch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress, count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from . import memory, shards, state_tensors, tensor_checks, watch
from .backends import choose
from .launch import Entry, Kind, Launch
from .plan import Plan
from .reference.multi_tensor_apply import facts
from .sparse import Touched
from .state_tensors import MASTER, StateSpec
from .sums import Norm, Sums, first_slots

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer

GRAD_NORM = "grad_norm"  # the rule whose sum is the squared norm of all gradients


class _Alike(NamedTuple):
    """What parameters of one group and dtype have in common."""

    group: int
    variant: int
    layout: dict[str, StateSpec]
    states: list[str]


@dataclass(eq=False)
class _Planned:
    """A parameter that takes part: it has a gradient, or a state from when it had one."""

    index: int  # in the flat list of the optimizer's parameters
    where: str
    param: torch.Tensor
    alike: _Alike
    state: dict[str, Any]  # as it is
    unfit: list[str]  # entries of it to make or convert


@torch.inference_mode(False)  # what is made here serves later steps, too
@torch.no_grad()
def make_plan(optimizer: FusedOptimizer) -> Plan:
    """Check every parameter and gradient, make tables and what states lack, and find kernels; only
    then do the optimizer's states change, so an error before that, such as out of memory, loses
    nothing. (States that have to be converted exist twice for a moment.)
    """
    planned = _checked(optimizer)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    numels = [0 if is_lazy(p) else shards.local(p).numel() for p in params]
    axes = [shards.axes(p) for p in params]
    devices = {each.param.device for each in planned}
    backends = {device: choose(optimizer.backend, device) for device in devices}
    rule_facts = facts(optimizer.rule, planned[0].alike.variant if planned else 0)
    segments = optimizer.segments() if rule_facts.SUMS else []
    _check_sums(optimizer, planned, segments, axes)

    states, touched = {}, {}
    kinds: dict[Kind, list[Entry]] = {}
    for each in planned:
        p = each.param
        states[p] = state_tensors.completed(each.state, p, each.alike.layout, each.unfit)
        if memory.is_sparse(p.grad):
            touched[each.index] = Touched(p.grad)
        kind, entry = _entry(optimizer, each, states[p], touched.get(each.index))
        kinds.setdefault(kind, []).append(entry)
    sharing = _sharing(planned, states)
    # The states' own key objects, which are found at once; a checkpoint's are other objects.
    names = {name for e in planned for name in states[e.param] if name in e.alike.layout} | {MASTER}
    had_both = any({"step", MASTER} <= e.state.keys() & e.alike.layout.keys() for e in planned)
    resumed = had_both and not touched  # else each sparse step would wait to compare
    hypers, slots = len(optimizer.hypers), first_slots(numels)
    launches = [Launch(kind, entries, hypers, slots) for kind, entries in kinds.items()]
    for device in devices:
        here = [launch for launch in launches if launch.device == device]
        indices = [e.index for launch in here for e in launch.entries]
        sums = norm = None
        if rule_facts.SUMS:
            totals = optimizer.segment_totals(device)
            sums = Sums(
                rule_facts.SUMS, numels, segments, indices, device,
                totals=totals, axes=axes, keeps=rule_facts.keeps_sums,
            )  # fmt: skip
        if optimizer.needs_norm():
            norm = Norm(numels, axes, indices, device, skips=optimizer.skip_nonfinite)
        for launch in here:
            _plan_passes(optimizer, launch, sums, norm)
            for work in filter(None, (launch.norm, launch.survey, *launch.passes)):
                backends[device].prepare(launch, work)
    for each in planned:
        if (state := states[each.param]) is not each.state:
            state_tensors.replace(optimizer.state[each.param], state)
    return Plan(optimizer, launches, backends, touched, sharing, names, resumed)


def _checked(optimizer: FusedOptimizer) -> list[_Planned]:
    """The parameters that take part, in order; raises where kernels could not serve one that has a
    gradient. Others that they could not serve are left out: a frozen one's memory may be freed."""
    watch.require(type(optimizer).__name__, "its state", optimizer.state, dict)
    planned: list[_Planned] = []
    known: dict[tuple[int, torch.dtype], _Alike] = {}
    index = count()
    for g, group in enumerate(optimizer.param_groups):
        watch.require(optimizer.where(g), 'its "params"', group["params"], list)
        tensor_checks.tensors(optimizer.where(g), group["params"])
        optimizer.check_group(optimizer.where(g), group)  # it may depend on the parameters
        listed: dict[torch.Tensor, int] = {}
        for k, p in enumerate(group["params"]):
            i, grad, state = next(index), p.grad, optimizer.state.get(p, {})
            if grad is None and not state:
                continue
            where = optimizer.where(g, k)
            if grad is not None and (first := listed.setdefault(p, k)) != k:
                raise ValueError(f"{where} is parameter {first} again. List it once.")
            watch.require(where, "its state", state, dict)
            if (g, p.dtype) not in known:
                layout, states = optimizer.state_layout(p, group), optimizer.state_fills(group)
                known[g, p.dtype] = _Alike(g, optimizer.variant(group), layout, list(states))
            alike = known[g, p.dtype]
            if grad is None and not state.keys() & alike.layout.keys():
                continue  # only other code keeps something there
            try:
                tensor_checks.parameter(where, p)
                if grad is not None:
                    why_not = optimizer.why_not_sparse(group) if memory.is_sparse(grad) else None
                    tensor_checks.gradient(where, p, grad, why_not)
                optimizer.check_state(where, group, state)
                unfit = state_tensors.check(where, state, p, alike.layout)
            except ValueError:
                if grad is not None:
                    raise
                continue
            planned.append(_Planned(i, where, p, alike, state, unfit))
    stepping = [each for each in planned if each.param.grad is not None]
    if stepping and (optimizer.needs_norm() or not facts(optimizer.rule, 0).COUNTS_ALL):
        # on other devices nothing steps; norms are of one device
        devices = {each.param.device for each in stepping}
        planned = [each for each in planned if each.param.device in devices]
    return planned


def _sharing(planned: list[_Planned], states: dict[torch.Tensor, dict[str, Any]]) -> set[int]:
    """The parameters without a gradient whose memory, or whose states', others share, as when a new
    tensor has taken over an older one's: if one gets a gradient, it must be checked. Raises where
    two that have gradients share memory."""
    used = [
        shards.local(t)
        for each in planned
        for t in (each.param, *map(states[each.param].__getitem__, each.alike.layout))
    ]
    pairs = memory.overlaps(used)
    if not pairs:
        return set()
    owners = [(each, name) for each in planned for name in ("", *each.alike.layout)]
    wheres = [f"{each.where}, its {name}," if name else each.where for each, name in owners]
    stepping = [each.param.grad is not None for each, _ in owners]
    tensor_checks.no_overlap([*compress(zip(wheres, used, strict=True), stepping)])
    sharing = {k for pair in pairs for k in pair}
    return {owners[k][0].index for k in sharing if not stepping[k]}


def _check_sums(
    optimizer: FusedOptimizer, planned: list[_Planned], segments: list[int], axes: list[tuple]
) -> None:
    """Require that the parameters whose squares are summed together allow that."""
    params = [(each.where, each.param) for each in planned]
    if segments:
        name = type(optimizer).__name__
        tensor_checks.one_device(name, [(segments[each.index], each.param) for each in planned])
        tensor_checks.cut_alike(name, segments, axes)
        tensor_checks.not_flattened(name, params)
    if optimizer.needs_norm():
        option = "skip_nonfinite" if optimizer.skip_nonfinite else "max_grad_norm"
        tensor_checks.one_device(option, [(0, each.param) for each in planned])
        tensor_checks.on_mesh(option, params)
        tensor_checks.not_flattened(option, params)


def _entry(
    optimizer: FusedOptimizer, planned: _Planned, state: dict[str, Any], touched: Touched | None
) -> tuple[Kind, Entry]:
    """A parameter's place in the tables."""
    p, alike = planned.param, planned.alike
    part = shards.local if touched is None else touched.gather
    entry = Entry(
        index=planned.index,
        group=alike.group,
        param=part(p),
        master=part(state[MASTER]) if MASTER in state else None,
        step=state["step"],
        states=[part(state[name]) for name in alike.states],
        carried=[state[name] for name in optimizer.carried],
    )
    kind = Kind(
        device=p.device,
        variant=alike.variant,
        param_dtype=p.dtype,
        grad_dtype=p.dtype if p.grad is None else p.grad.dtype,
        exp_avg_dtype=entry.states[0].dtype,
        master=entry.master is not None,
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
        launch.norm, launch.norm_sums = launch.plan_pass(GRAD_NORM, 0, norm), norm
