"""The tensors of a parameter's state: made where missing, adopted when loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Slot(NamedTuple):
    """An entry of the state."""

    dtype: torch.dtype
    fill: float | None  # what it starts with; None: the parameter's value
    scalar: bool = False  # 0-d instead of the parameter's shape


def complete(state: dict[str, torch.Tensor], p: torch.Tensor, layout: dict[str, Slot]) -> None:
    """Add what the state lacks, on the parameter's device and in its memory order."""
    for name, slot in layout.items():
        if name in state:
            continue
        if slot.fill is None:
            state[name] = p.detach().to(slot.dtype, copy=True)
        elif slot.scalar:
            state[name] = torch.full((), slot.fill, dtype=slot.dtype, device=p.device)
        else:
            state[name] = torch.full_like(p, slot.fill, dtype=slot.dtype)


def adopt(
    where: str, p: torch.Tensor, loaded: dict[str, Any], layout: dict[str, Slot]
) -> dict[str, Any]:
    """Copies of loaded entries: the slots' dtypes, the parameter's device and memory order.

    Entries without a slot are kept as they are.

    Raises:
        ValueError: an entry's shape does not fit the parameter.
    """
    return {
        name: _adopt(f"{where}, {name}", p, value, layout[name]) if name in layout else value
        for name, value in loaded.items()
    }


def _adopt(where: str, p: torch.Tensor, value: Any, slot: Slot) -> torch.Tensor:
    value = torch.as_tensor(value)
    fits = value.numel() == 1 if slot.scalar else value.shape == p.shape
    if not fits:
        raise ValueError(
            f"{where} has shape {tuple(value.shape)}, its parameter {tuple(p.shape)}. "
            f"Load the state of the same model."
        )
    if slot.scalar:
        return value.reshape(()).to(p.device, slot.dtype, copy=True)
    return torch.empty_like(p, dtype=slot.dtype, requires_grad=False).copy_(value)
