"""The tensors of a parameter's state: made where missing, adopted when loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from . import memory, shards, tensor_checks

MASTER = "master_param"  # a float32 copy of a 16-bit parameter


class StateSpec(NamedTuple):
    """An entry of the state."""

    dtype: torch.dtype
    fill: float | torch.Tensor | None  # what it starts with; None: the parameter's value
    scalar: bool = False  # 0-d instead of the parameter's shape
    late: bool = False  # may be missing beside others: its option can be switched on later


def check(
    where: str, state: dict[str, Any], p: torch.Tensor, layout: dict[str, StateSpec]
) -> list[str]:
    """Require that the entries which the state holds already can be converted to their specs.

    Returns:
        The names of what is not there yet: missing, or of another dtype, device or layout.

    Raises:
        ValueError: an entry does not fit, or only some of those that belong together are there.
            (A master may be there alone, as what a parameter begins with.)
    """
    part = shards.local(p)
    place = part.device, part.shape, part.stride()
    unfit = [name for name, spec in layout.items() if not _fits(state.get(name), p, place, spec)]
    lacking = []
    for name in unfit:
        if name in state:
            tensor_checks.state(where, name, state[name], p, layout[name].scalar)
            _check_value(where, name, state[name], layout[name])
        elif layout[name].fill is not None and not layout[name].late:
            lacking.append(name)
    held = [name for name in layout if name in state and name != MASTER] if lacking else []
    if held:
        raise ValueError(
            f"{where} has a state with {', '.join(held)} and without {', '.join(lacking)}: it is "
            f"another algorithm's, or has lost a part. Load the state of the same class and "
            f"options, or start anew: load the model's weights alone, or remove the state "
            f"(`optimizer.state.pop(p)`)."
        )
    return unfit


def _check_value(where: str, name: str, value: Any, spec: StateSpec) -> None:
    """Require a scalar to be finite, and one that becomes a count to be a number of steps."""
    if spec.scalar:
        tensor_checks.state_value(where, name, float(value), whole=spec.dtype is torch.int64)


def completed(
    state: dict[str, Any], p: torch.Tensor, layout: dict[str, StateSpec], unfit: list[str]
) -> dict[str, Any]:
    """The state with missing entries added, all in the kernels' dtype, device and layout. The one
    given is not changed, and is returned if nothing has to be done."""
    if not unfit and (MASTER in layout or MASTER not in state):
        return state
    result = dict(state)
    for name in unfit:
        spec = layout[name]
        if name in state:
            result[name] = _fitted(state[name], p, spec)
        elif spec.fill is None:  # from the master that was given, if any
            given = MASTER in state and MASTER in layout
            result[name] = _fitted(state[MASTER] if given else p, p, spec, copy=True)
        elif isinstance(spec.fill, torch.Tensor):
            result[name] = spec.fill.to(p.device, spec.dtype, copy=True)
        elif spec.scalar:
            result[name] = torch.full((), spec.fill, dtype=spec.dtype, device=p.device)
        else:
            result[name] = torch.full_like(p, spec.fill, dtype=spec.dtype)
    _make_consistent(result, state, layout)
    return result


def replace(state: dict[str, Any], by: dict[str, Any]) -> None:
    """Give a state the entries of another; it is whole at every moment."""
    state.update(by)
    for name in state.keys() - by.keys():
        del state[name]


def adopt(
    where: str, p: torch.Tensor, loaded: dict[str, Any], layout: dict[str, StateSpec]
) -> dict[str, Any]:
    """Copies of loaded entries, converted as by :func:`completed`. Entries without a spec are other
    code's and stay as they are, except that their tensors move to the parameter's device.

    Raises:
        ValueError: an entry does not fit, or is no count where one must be.
    """
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{where}: its state is {loaded!r}, a {type(loaded).__name__}; a state is a dict of "
            f"tensors by name. Load what `state_dict()` returned."
        )
    unfit = check(where, loaded, p, layout)  # their values, too
    for name, spec in layout.items():
        if name in loaded and name not in unfit:
            _check_value(where, name, loaded[name], spec)
    adopted = {
        name: _fitted(value, p, layout[name], copy=True) if name in layout else _beside(p, value)
        for name, value in loaded.items()
    }
    _make_consistent(adopted, loaded, layout)
    return adopted


def _beside(p: torch.Tensor, value: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.to(p.device), value)


def _make_consistent(
    state: dict[str, Any], given: dict[str, Any], layout: dict[str, StateSpec]
) -> None:
    """Drop a master that is no longer used, and reset the bounds of converted entries."""
    if MASTER not in layout:  # it would go stale, and later undo the training since then
        state.pop(MASTER, None)
    for name in layout:
        # If either was rounded, the column may be above its bound; and one that has fewer digits
        # than before vanishes sooner than its bound can tell.
        bound = f"{name}_bound"
        if bound in layout and any(_converts(given.get(n), layout[n]) for n in (name, bound)):
            state[bound] = torch.ones_like(state[bound])


def _converts(value: Any, spec: StateSpec) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is not spec.dtype


def _fits(value: Any, p: torch.Tensor, place: tuple, spec: StateSpec) -> bool:
    """Whether kernels can take an entry as it is; ``place``: device, shape and strides of what this
    process holds of the parameter."""
    whole = value
    if not spec.scalar and shards.is_dtensor(p) and isinstance(value, torch.Tensor):
        if not shards.alike(value, p):
            return False
        value = shards.local(value)
    if type(value) is not torch.Tensor or value.layout is not torch.strided:
        return False
    if value.dtype is not spec.dtype:
        return False
    if spec.scalar:
        like = value.ndim == 0 and value.device == place[0]
    else:
        like = (value.device, value.shape, value.stride()) == place
    like = like and not (value.requires_grad or value.is_neg() or memory.is_missing(value))
    return like and not _is_inference(whole)


def _fitted(value: Any, p: torch.Tensor, spec: StateSpec, copy: bool = False) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):  # a number
        value = torch.tensor(float(value), dtype=torch.float64, device=p.device)
    if value.requires_grad or _is_inference(value):  # it is another's, or keeps a graph alive
        value, copy = value.detach(), True
    if spec.scalar:
        return value.reshape(()).to(p.device, spec.dtype, copy=copy).resolve_neg()
    value = shards.distributed_like(value, p)
    fits = not copy and (value.dtype, value.device) == (spec.dtype, p.device)
    fits = fits and memory.same_layout(shards.local(p), shards.local(value))
    return value if fits else torch.empty_like(p, dtype=spec.dtype).copy_(value)


def _is_inference(t: torch.Tensor) -> bool:
    """Whether a tensor was made in inference mode: torch does not count writes into it, and refuses
    them elsewhere."""
    return t.is_inference() or shards.local(t).is_inference()
