"""Checks of hyper-parameters and options. Each raises one error: what, value, why, remedy."""

import math
from numbers import Real

import torch

from . import memory, shards

HYPER_DTYPES = (torch.float32, torch.float64)
ROUNDED_TO_0 = 2.0**-150  # the largest number that is 0 as a float32


def hyper_in(
    where: str,
    name: str,
    value,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = True,
) -> None:
    """Require a finite number in an interval. A 0-d tensor's value is not read (it would wait)."""
    if type(value) is float and low < value < high:
        return
    if isinstance(value, torch.Tensor):
        if value.ndim != 0 or value.dtype not in HYPER_DTYPES:
            raise ValueError(
                f"{where}: {name} is a {value.dtype} tensor of shape {tuple(value.shape)}; kernels "
                f"read 0-d float32 or float64 tensors. Pass a float or such a tensor."
            )
        if shards.is_dtensor(value) or not memory.is_plain(value):
            raise ValueError(
                f"{where}: {name} is a {type(value).__name__} on {value.device}, without memory of "
                f"its own, which kernels cannot read. Pass a float or a plain 0-d tensor."
            )
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{where}: {name} is {value!r}, a {type(value).__name__}. Pass a float or a 0-d tensor."
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (above and below and math.isfinite(number)):
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(f"{where}: {name} is {value!r}, outside {interval}. Pass a value inside.")


def one_of(where: str, name: str, value, choices: tuple) -> None:
    """Require one of some choices."""
    if value not in choices:
        raise ValueError(
            f"{where}: {name} is {value!r}; choose one of {', '.join(map(repr, choices))}."
        )


def flags(where: str, group: dict, *names: str) -> None:
    """Require options to be True or False (1 or 0), and not tensors: a tensor's value now would
    choose the kernel, which would read a later value."""
    for name in names:
        value = group[name]
        if isinstance(value, torch.Tensor) or value not in (False, True):
            raise ValueError(f"{where}: {name} is {value!r}. Pass True or False.")


def decay_of_its_own(where: str, group: dict, decoupled: bool, twin: str) -> None:
    """Require the class's own kind of weight decay; its twin has the other kind."""
    if (said := group["decoupled_weight_decay"]) != decoupled:
        raise ValueError(
            f"{where}: decoupled_weight_decay is {said!r}, which is {twin}'s. If the group "
            f"or checkpoint is {twin}'s, use {twin}; otherwise set it to {decoupled}."
        )


def pair(where: str, name: str, value) -> tuple:
    """Require a tuple or list of two."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(
            f"{where}: {name} is {value!r}, a {type(value).__name__}. Pass a tuple or list of two, "
            f"such as (0.9, 0.999)."
        )
    return tuple(value)


def betas(where: str, value) -> None:
    """Require a pair of decay rates, each in [0, 1)."""
    for i, beta in enumerate(pair(where, "betas", value)):
        hyper_in(where, f"betas[{i}]", beta, 0.0, 1.0)


def least_bias_correction(beta) -> float:
    """The smallest of ``1 - beta^t``, that of the first step; 1 for a tensor, which is not read."""
    return 1.0 if isinstance(beta, torch.Tensor) else 1.0 - float(beta)


def eps_above_rounding(
    where: str, value, smallest_factor: float, params: list[torch.Tensor]
) -> None:
    """Require an eps that is not rounded to 0 where it keeps a denominator from 0."""
    if isinstance(value, torch.Tensor):
        return
    smallest = float(value) * smallest_factor
    if smallest > ROUNDED_TO_0:
        return
    for p in params:
        wide = p.dtype is torch.float64
        if not wide or smallest == 0:
            raise ValueError(
                f"{where}: eps is {value!r}, which is 0 in the arithmetic of {p.dtype} parameters "
                f"({torch.float64 if wide else torch.float32}) and would divide 0 by 0. Pass a "
                f"larger eps."
            )


def max_grad_norm(where: str, value) -> None:
    """Require None, a positive number (inf: measure, never clip) or a 0-d tensor."""
    if isinstance(value, Real) and value == 0:
        raise ValueError(
            f"{where}: max_grad_norm is {value!r}, which would clip all gradients to 0. Pass None, "
            f"which clips nothing, or a number above 0."
        )
    if value is not None and not (isinstance(value, Real) and value == math.inf):
        hyper_in(where, "max_grad_norm", value, 0.0, low_open=True, high_open=False)


def kept_sums(where: str, name: str, value) -> None:
    """Require the two sums that an optimizer keeps in a group, in a tensor that kernels write."""
    fits = isinstance(value, torch.Tensor) and value.shape == (2,) and value.dtype in HYPER_DTYPES
    if not fits or memory.is_missing(value):
        raise ValueError(
            f"{where}: {name} is {value!r}; the optimizer keeps two numbers there, in a float64 "
            f"tensor. Load an intact checkpoint, or start anew (`group.pop({name!r})`)."
        )


def amp_tensor(name: str, value) -> None:
    """Require one number in a tensor, as ``torch.amp.GradScaler`` sets it."""
    one = isinstance(value, torch.Tensor) and value.numel() == 1
    if not one or shards.is_dtensor(value):
        raise TypeError(
            f"optimizer.{name} is {value!r}; a step takes None or a plain tensor of one element, "
            f"which torch.amp.GradScaler sets. Pass such a tensor."
        )
