"""Checks of user input. Each raises one error: what, value, why, remedy."""

import math
from itertools import pairwise

import torch

HYPER_DTYPES = (torch.float32, torch.float64)
PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    if isinstance(value, torch.Tensor):
        if value.ndim != 0 or value.dtype not in HYPER_DTYPES:
            raise ValueError(
                f"{where}: {name} is a {value.dtype} tensor of shape {tuple(value.shape)}; kernels "
                f"read 0-d float32 or float64 tensors. Pass a float or such a tensor."
            )
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{where}: {name} is {value!r}, a {type(value).__name__}. Pass a float or a 0-d tensor."
        )
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below and math.isfinite(value)):
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(f"{where}: {name} is {value!r}, outside {interval}. Pass a value inside.")


def one_of(where: str, name: str, value, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(
            f"{where}: {name} is {value!r}; choose one of {', '.join(map(repr, choices))}."
        )


def pair(where: str, name: str, value) -> tuple:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{where}: {name} is {value!r}; pass a pair such as (0.9, 0.999).")
    return tuple(value)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill one stretch of memory, each exactly once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether memory holds the elements in the same order; strides of size-1 dims don't count."""
    return all(
        size == 1 or x == y for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def parameter(where: str, p: torch.Tensor) -> None:
    """Require a parameter that kernels can update in place."""
    if hasattr(p, "device_mesh"):
        raise NotImplementedError(
            f"{where} is a DTensor: sharded parameters are not supported yet. "
            f"Pass the local tensors (`p.to_local()`)."
        )
    if p.layout is not torch.strided:
        raise ValueError(f"{where} has layout {p.layout}; kernels update dense memory. Densify it.")
    if p.dtype not in PARAM_DTYPES:
        remedy = (
            "Pass torch.view_as_real(p)." if p.is_complex() else "Pass a floating-point tensor."
        )
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in PARAM_DTYPES)
        raise ValueError(f"{where} has dtype {p.dtype}; supported are {names}. {remedy}")
    if not is_dense(p):
        raise ValueError(
            f"{where} has shape {tuple(p.shape)} and strides {p.stride()}: its elements overlap or "
            f"leave gaps in memory. Pass a contiguous copy (`p.detach().clone()`)."
        )


def gradient(where: str, p: torch.Tensor, g: torch.Tensor) -> None:
    """Require a gradient that fits its parameter."""
    if g.layout is not torch.strided:
        raise ValueError(
            f"{where} has a gradient of layout {g.layout}; sparse gradients are not supported. "
            f"Build the layer with sparse=False or densify the gradient (`p.grad.to_dense()`)."
        )
    allowed = {p.dtype} | ({torch.float32} if p.dtype.itemsize == 2 else set())
    if g.dtype not in allowed:
        raise ValueError(
            f"{where} has dtype {p.dtype} and a gradient of dtype {g.dtype}. "
            f"Cast the gradient (`p.grad = p.grad.to(p.dtype)`)."
        )
    if g.device != p.device or g.shape != p.shape:
        raise ValueError(
            f"{where} has shape {tuple(p.shape)} on {p.device} and a gradient of shape "
            f"{tuple(g.shape)} on {g.device}. Recompute it (`optimizer.zero_grad()`, backward)."
        )


def no_overlap(entries: list[tuple[str, torch.Tensor]]) -> None:
    """Require that no two parameters share memory."""
    spans = sorted(
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), where)
        for where, p in entries
        if p.numel()
    )
    for (_, end, first), (begin, _, second) in pairwise(spans):
        if begin < end:
            raise ValueError(
                f"{first} and {second} share memory; each would be updated twice. "
                f"Pass the shared parameter once."
            )
