"""The tensors of a parameter's state: made where missing, adopted when loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from . import memory, shards, tensor_checks

MASTER = "master_param"  # a float32 copy of a 16-bit parameter
LATE = ("max_exp_avg_sq",)  # what an option may add to a state that is there


class Slot(NamedTuple):
    """An entry of the state."""

    dtype: torch.dtype
    fill: float | torch.Tensor | None  # what it starts with; None: the parameter's value
    scalar: bool = False  # 0-d instead of the parameter's shape


def check(where: str, state: dict[str, Any], p: torch.Tensor, layout: dict[str, Slot]) -> list[str]:
    """Require that what the state holds already can be brought into its slots.

    Returns:
        The names of what is not there yet: missing, or of another dtype, device or layout.

    Raises:
        ValueError: an entry does not fit, or some are there and others, which belong to them, not.
    """
    unfit = [name for name, slot in layout.items() if not _fits(state.get(name), p, slot)]
    lacking = []
    for name in unfit:
        if name in state:
            tensor_checks.state(where, name, state[name], p, layout[name].scalar)
            _check_value(where, name, state[name], layout[name])
        elif layout[name].fill is not None and name not in LATE:
            lacking.append(name)
    held = [name for name in layout if name in state] if lacking else []
    if held:
        raise ValueError(
            f"{where} has a state with {', '.join(held)} and without {', '.join(lacking)}: it is "
            f"another algorithm's, or has lost a part. Load the state of the same class and "
            f"options, or begin anew (`optimizer.state.pop(p)`)."
        )
    return unfit


def _check_value(where: str, name: str, value: Any, slot: Slot) -> None:
    """Require that what becomes a count is one, and another number finite."""
    if slot.scalar:
        tensor_checks.state_value(where, name, float(value), whole=slot.dtype is torch.int64)


def completed(
    state: dict[str, Any], p: torch.Tensor, layout: dict[str, Slot], unfit: list[str]
) -> dict[str, Any]:
    """A state with what it lacks, and what it has in the kernels' dtype, device and layout. The one
    given stays as it is."""
    result = dict(state)
    for name in unfit:
        slot = layout[name]
        if name in state:
            result[name] = _fitted(state[name], p, slot)
        elif slot.fill is None:
            result[name] = p.detach().to(slot.dtype, copy=True)
        elif isinstance(slot.fill, torch.Tensor):
            result[name] = slot.fill.to(p.device, slot.dtype, copy=True)
        elif slot.scalar:
            result[name] = torch.full((), slot.fill, dtype=slot.dtype, device=p.device)
        else:
            result[name] = torch.full_like(p, slot.fill, dtype=slot.dtype)
    _drop_stale(result, layout)
    _restart_bounds(result, state, layout)
    return result


def replace(state: dict[str, Any], by: dict[str, Any]) -> None:
    """Give a state the entries of another; it is whole at every moment."""
    state.update(by)
    for name in state.keys() - by.keys():
        del state[name]


def adopt(
    where: str, p: torch.Tensor, loaded: dict[str, Any], layout: dict[str, Slot]
) -> dict[str, Any]:
    """Copies of loaded entries as :func:`completed` has them. Entries without a slot, which are
    others' notes, as they are, but their tensors on the parameter's device.

    Raises:
        ValueError: an entry does not fit, or is no count where one must be.
    """
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{where} has as state {loaded!r}, a {type(loaded).__name__}; a state is a dict of "
            f"tensors by name. Load what `state_dict()` returned."
        )
    unfit = check(where, loaded, p, layout)  # their values, too
    for name, slot in layout.items():
        if name in loaded and name not in unfit:
            _check_value(where, name, loaded[name], slot)
    adopted = {
        name: _fitted(value, p, layout[name], copy=True) if name in layout else _beside(p, value)
        for name, value in loaded.items()
    }
    _drop_stale(adopted, layout)
    _restart_bounds(adopted, loaded, layout)
    return adopted


def _beside(p: torch.Tensor, value: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.to(p.device), value)


def _drop_stale(state: dict[str, Any], layout: dict[str, Slot]) -> None:
    """A master that is not updated would, used again later, undo what came between."""
    if MASTER not in layout:
        state.pop(MASTER, None)


def _restart_bounds(state: dict[str, Any], given: dict[str, Any], layout: dict[str, Slot]) -> None:
    """A column that is brought into fewer digits vanishes sooner than its bound can tell: it is
    read again."""
    for name, slot in layout.items():
        bound, value = f"{name}_bound", given.get(name)
        narrower = isinstance(value, torch.Tensor) and value.dtype.itemsize > slot.dtype.itemsize
        if bound in layout and narrower:
            state[bound] = torch.ones_like(state[bound])


def _fits(value: Any, p: torch.Tensor, slot: Slot) -> bool:
    """Whether kernels can take an entry as it is."""
    if not slot.scalar and shards.is_dtensor(p) and isinstance(value, torch.Tensor):
        if not shards.alike(value, p):
            return False
        value, p = shards.local(value), shards.local(p)
    if type(value) is not torch.Tensor or value.layout is not torch.strided:
        return False
    if value.dtype is not slot.dtype or value.device != p.device:
        return False
    if slot.scalar:
        like = value.ndim == 0
    else:
        like = value.shape == p.shape and value.stride() == p.stride()
    return like and not value.is_neg() and not memory.is_missing(value)


def _fitted(value: Any, p: torch.Tensor, slot: Slot, copy: bool = False) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):  # a number
        value = torch.tensor(float(value), dtype=torch.float64, device=p.device)
    if slot.scalar:
        return value.reshape(()).to(p.device, slot.dtype, copy=copy).resolve_neg()
    value = shards.distributed_like(value, p)
    like = (value.dtype, value.device) == (slot.dtype, p.device)
    like = like and memory.same_layout(shards.local(p), shards.local(value))
    return value if like and not copy else torch.empty_like(p, dtype=slot.dtype).copy_(value)
