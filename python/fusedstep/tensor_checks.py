"""Checks of parameters, gradients and states. Each raises one error: what, value, why, remedy."""

import math
from numbers import Real

import torch

from . import memory, shards

PARAM_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COUNT_DTYPES = (torch.int64, torch.int32)


def _has_memory(what: str, t: torch.Tensor) -> None:
    """Require a tensor with memory of its own."""
    if not memory.is_sparse(t) and memory.is_missing(t):
        raise ValueError(
            f"{what} is a {type(t).__name__} on {t.device} without memory of its own, which "
            f"kernels cannot read. Pass a plain tensor with storage."
        )


def tensors(where: str, params: list) -> None:
    """Require that the parameters of a group are tensors."""
    for k, p in enumerate(params):
        if not isinstance(p, torch.Tensor):
            raise TypeError(
                f"{where}, parameter {k} is {p!r}, a {type(p).__name__}; an optimizer updates "
                f'tensors. Take it out of the group\'s "params".'
            )


def parameter(where: str, p: torch.Tensor) -> None:
    """Require a parameter that kernels can update in place."""
    _has_memory(where, p)
    if shards.is_dtensor(p) and any(placement.is_partial() for placement in p.placements):
        raise ValueError(
            f"{where} is a DTensor with placements {p.placements}: each process holds a summand of "
            f"every element. Pass one that is sharded or replicated (`p.redistribute(...)`)."
        )
    p = shards.local(p)
    if p.layout is not torch.strided:
        raise ValueError(f"{where} has layout {p.layout}; kernels update dense memory. Densify it.")
    if p.dtype not in PARAM_DTYPES:
        remedy = "Pass a floating-point tensor."
        if p.is_complex():
            remedy = (
                "Let the module keep a real parameter of shape (..., 2), and compute with "
                "torch.view_as_complex(p)."
            )
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in PARAM_DTYPES)
        raise ValueError(f"{where} has dtype {p.dtype}; supported are {names}. {remedy}")
    if p.is_neg():
        raise ValueError(
            f"{where} is a view of memory with its elements negated, as the imaginary part of a "
            f"conjugated tensor is. Pass a copy (`p.detach().resolve_neg()`)."
        )
    if not memory.is_dense(p):
        raise ValueError(
            f"{where} has shape {tuple(p.shape)} and strides {p.stride()}: its elements overlap or "
            f"leave gaps in memory. Give it memory of its own "
            f"(`p.data = p.data.clone(memory_format=torch.contiguous_format)`)."
        )


def gradient(where: str, p: torch.Tensor, g: torch.Tensor, why_not_sparse: str | None) -> None:
    """Require a gradient that fits its parameter; a sparse one where there is no reason not to."""
    if memory.is_sparse(g) and (why_not_sparse or g.layout is not torch.sparse_coo):
        raise ValueError(
            f"{where} has a gradient of layout {g.layout}; "
            f"{why_not_sparse or 'of the sparse layouts only torch.sparse_coo is supported'}. "
            f"Build the layer with sparse=False or densify the gradient (`p.grad.to_dense()`)."
        )
    _has_memory(f"{where}: its gradient", g)
    if g.dtype != p.dtype and (g.dtype != torch.float32 or p.dtype.itemsize != 2):
        raise ValueError(
            f"{where} has dtype {p.dtype} and a gradient of dtype {g.dtype}. "
            f"Cast the gradient (`p.grad = p.grad.to(p.dtype)`)."
        )
    if g.device != p.device or g.shape != p.shape:
        raise ValueError(
            f"{where} has shape {tuple(p.shape)} on {p.device} and a gradient of shape "
            f"{tuple(g.shape)} on {g.device}. Recompute it (`optimizer.zero_grad()`, backward)."
        )
    if not shards.is_dtensor(g) and not shards.is_dtensor(p):
        return
    _distributed_like(where, "gradient", g, p, "Compute it from the parameter.")
    if shards.alike(g, p) and shards.local(g).shape != shards.local(p).shape:
        raise ValueError(
            f"{where} is a DTensor of which this process holds a part of shape "
            f"{tuple(shards.local(p).shape)}, but {tuple(shards.local(g).shape)} of its gradient. "
            f"Shard both alike."
        )


def _distributed_like(where: str, what: str, t: torch.Tensor, p: torch.Tensor, remedy: str) -> None:
    """Require that a tensor lies on its parameter's mesh of devices, or neither is on any."""
    on, mesh = shards.mesh_of(t), shards.mesh_of(p)
    if on != mesh:
        raise ValueError(
            f"{where} is {'not a DTensor' if mesh is None else f'a DTensor on {mesh}'}, but its "
            f"{what} is {'a plain tensor' if on is None else f'a DTensor on {on}'}. {remedy}"
        )


def state(where: str, name: str, value, p: torch.Tensor, scalar: bool) -> None:
    """Require an entry of the state that kernels can take, or that can be copied into one."""
    what = f"{where}: its state {name}"
    remedy = "Load the state of the same model, or clear it (`optimizer.state.pop(p)`)."
    if scalar and isinstance(value, Real):
        return
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{what} is {value!r}, which is not a tensor. {remedy}")
    _has_memory(what, value)
    if scalar and shards.is_dtensor(value):
        raise ValueError(
            f"{what} is a DTensor, but each process keeps this number for itself. Pass a 0-d "
            f"tensor (`t.full_tensor()`)."
        )
    if not scalar:
        how = "Distribute it as the parameter is (torch.distributed.checkpoint loads so)."
        _distributed_like(where, f"state {name}", value, p, how)
    real = value.dtype in PARAM_DTYPES or (scalar and value.dtype in COUNT_DTYPES)
    if memory.is_sparse(value) or not real:
        raise ValueError(
            f"{what} is a {value.dtype} tensor of layout {value.layout}; kernels take dense "
            f"tensors of real numbers. {remedy}"
        )
    if value.numel() != 1 if scalar else value.shape != p.shape:
        need = "it must hold one number" if scalar else f"the parameter's shape is {tuple(p.shape)}"
        raise ValueError(f"{what} is a tensor of shape {tuple(value.shape)}; {need}. {remedy}")


def state_value(where: str, name: str, value: float, whole: bool) -> None:
    """Require a loaded number to be finite, and a ``whole`` one to be a count of steps."""
    if not math.isfinite(value) or (whole and not (0 <= value < 2**53 and value == int(value))):
        raise ValueError(
            f"{where}: its state {name} is {value:g}, which is not a "
            f"{'number of steps' if whole else 'finite number'}. Load an intact checkpoint."
        )


def no_overlap(entries: list[tuple[str, torch.Tensor]]) -> None:
    """Require that no two tensors share memory."""
    for i, k in memory.overlaps([p for _, p in entries]):
        raise ValueError(
            f"{entries[i][0]} and {entries[k][0]} share memory, which would be updated twice. "
            f"Pass a shared parameter once, and give each a state of its own (`t.clone()`)."
        )


def one_device(what: str, entries: list[tuple[int, torch.Tensor]]) -> None:
    """Require that the parameters of every segment, whose squares are summed, share a device."""
    devices: dict[int, torch.device] = {}
    for segment, p in entries:
        if devices.setdefault(segment, p.device) != p.device:
            raise NotImplementedError(
                f"{what} takes a norm over parameters on {devices[segment]} and {p.device}, which "
                f"is not supported. Keep them on one device, or use an optimizer for each device."
            )


def cut_alike(what: str, segments: list[int], axes: list[tuple]) -> None:
    """Require that the parameters of every segment, whose squares are summed, are cut along the
    same axes of a mesh, if they are cut."""
    first: dict[int, int] = {}
    for i, (segment, along) in enumerate(zip(segments, axes, strict=True)):
        k = first.setdefault(segment, i)
        if along != axes[k]:
            raise NotImplementedError(
                f"{what} sums over parameters {k} and {i} (counted through all groups), "
                f"which are distributed over processes in different ways; that is not supported. "
                f"Distribute them alike, or use an optimizer for each."
            )


def on_mesh(what: str, entries: list[tuple[str, torch.Tensor]]) -> None:
    """Require that this process is on the meshes of all parameters."""
    for where, p in entries:
        if not shards.has_place(p):
            raise NotImplementedError(
                f"{where} lies on {shards.mesh_of(p)}, of which this process is not a part; {what} "
                f"takes a norm over it that this process cannot know. Give each process the "
                f"parameters that it has a part of."
            )


def not_flattened(what: str, entries: list[tuple[str, torch.Tensor]]) -> None:
    """Require that no parameter is one that FSDP1 has spread over several processes: what others
    hold of it is not known."""
    for where, p in entries:
        if shards.is_flattened(p) and shards.processes() > 1:
            raise NotImplementedError(
                f"{where} is FullyShardedDataParallel's, which cuts parameters without DTensors: "
                f"{what} would take the norm of this process's part. (NO_SHARD's look the same "
                f"and are refused, too.) Shard the model with "
                f"`torch.distributed.fsdp.fully_shard`; or use a class that takes no norm, leave "
                f"out max_grad_norm and skip_nonfinite, and clip with the model's "
                f"`clip_grad_norm_`."
            )
