"""Bytes that a step must move, and that an optimizer holds, counted from the tensors themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from fusedstep.optimizer import FusedOptimizer

from .contenders import Contender, fade, fading

PROBE = 1024  # elements; enough for states per parameter to be told from those per tensor


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def states_of(optimizer: torch.optim.Optimizer, p: torch.nn.Parameter) -> list[torch.Tensor]:
    """The columns of a parameter's state: tensors with as many elements as it has."""
    found = _tensors(optimizer.state.get(p, {}))
    return [t for t in found if t.ndim and t.numel() == p.numel()]


def _tensors(state: object) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
    else:  # flashoptim wraps its states in objects
        members = getattr(state, "__dict__", {}).values()
        yield from (value for value in members if isinstance(value, torch.Tensor))


def moved(optimizer: torch.optim.Optimizer, fades: bool = False) -> int:
    """What a step reads and writes, once a first one has made the states. Ours reports it; for a
    peer, parameters and states count both ways and gradients once, the least that any can do. (Of
    MADGRAD, 4 bytes too many per parameter: x0 is only read, which a peer's state does not show.)
    """
    params = parameters_of(optimizer)
    if isinstance(optimizer, FusedOptimizer):
        columns = fading(type(optimizer)) if fades else []
        idle = (optimizer.state[p][name] for p in params for name in columns)
        return optimizer.bytes_moved() - sum(2 * t.nbytes for t in idle)
    both_ways = [t for p in params for t in (p, *states_of(optimizer, p))]
    return sum(2 * t.nbytes for t in both_ways) + sum(p.grad.nbytes for p in params)


def held(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, gradients and states."""
    params = parameters_of(optimizer)
    tensors = [t for p in params for t in (p, p.grad, *states_of(optimizer, p))]
    return sum(t.nbytes for t in tensors if t is not None)


@dataclass(frozen=True)
class Model:
    """Bytes per parameter."""

    moved: float
    held: float  # parameter, gradient and states


def model(contender: Contender, device: torch.device) -> Model:
    """Bytes per parameter of a contender, from one step of a small parameter.

    Raises whatever it raises: absent packages, dtypes and devices it cannot serve.
    """
    mode = contender.mode
    p = mode.parameter(torch.zeros(PROBE, dtype=mode.param, device=device))
    optimizer = contender.build([{"params": [p], "weight_decay": 0.0}])
    p.grad = torch.ones_like(p, dtype=mode.grad)
    optimizer.step()
    if contender.fades:
        fade(optimizer)
    return Model(moved(optimizer, contender.fades) / PROBE, held(optimizer) / PROBE)
