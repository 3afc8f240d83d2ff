"""What the optimizers' constructors take, for type checkers and editors."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch

Hyper = float | torch.Tensor  # a number, or a 0-d float32 or float64 tensor that holds it


class OptionsButClipping(TypedDict, total=False):
    """What all of them take: see :class:`~fusedstep.optimizer.FusedOptimizer`."""

    maximize: bool
    form: Literal["paper", "released"]
    backend: Literal["auto", "cuda", "triton", "cpu", "reference"]
    master_weights: bool
    state_dtype: torch.dtype | None
    capturable: bool


class Options(OptionsButClipping, total=False):
    """The same with clipping, for which some classes have a default of their own."""

    max_grad_norm: Hyper | None
