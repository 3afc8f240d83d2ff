"""How a kernel reaches the GPU: what it is compiled for, and the one launch."""

from importlib import import_module

import numpy as np
import torch
import triton
import triton.language as tl

from .multi_tensor_apply import CHUNK, multi_tensor_apply
from .prologue import never_faded
from .sums import LANES

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
INTERPRETED = not isinstance(multi_tensor_apply, triton.JITFunction)
NUMPY = tuple(map(int, np.__version__.split(".")[:2]))
if INTERPRETED and NUMPY >= (2, 4) and triton.__version__.startswith("3.6."):
    raise ImportError(
        f"to interpret, triton {triton.__version__} needs numpy before 2.4, and this is "
        f"{np.__version__}; run `pip install 'numpy<2.4'`"
    )
# the main loop asks for more stages itself
OPTIONS = {"num_stages": 1, "enable_fp_fusion": False}
PIECES = 4  # programs that share a chunk
# The most registers of a thread: with 96, five programs fit a multiprocessor; with 80, three of the
# larger ones that sum; with 32, eight that sum a single column. float64 has no limit.
REGISTERS, REGISTERS_TO_SUM, REGISTERS_TO_NORM = 96, 80, 32


def constants(launch, work) -> dict:
    """What one compiled kernel is for."""
    rule = import_module(f"{__package__}.{work.rule}")
    if isinstance(rule.update, triton.JITFunction) is INTERPRETED:
        raise RuntimeError(
            "TRITON_INTERPRET has changed since the triton backend was first used. Leave it as it "
            "is while the program runs."
        )
    return {
        **vars(work.facts),
        "faded": getattr(rule, "faded", never_faded),
        "scalars": rule.scalars,
        "update": rule.update,
        "variant": work.variant,
        "ROW_SIZE": launch.row_size,
        "opmath": DTYPES[launch.opmath],
        "param_dtype": DTYPES[launch.param_dtype],
        "grad_dtype": DTYPES[launch.grad_dtype],
        "exp_avg_dtype": DTYPES[launch.exp_avg_dtype],
        "masters": launch.master,
        "BLOCK": block_size(launch.opmath.itemsize, work.facts.EMITS),
    }


def block_size(itemsize: int, emits: bool) -> int:
    """Elements that a program takes at a time. A block that is summed fills the lanes once."""
    if emits:
        return LANES.value
    # the interpreter's cost is in calls, not in elements
    return 2048 if INTERPRETED else 2048 // itemsize


def options(launch, work) -> dict:
    """How a kernel is compiled. A thread holds 16 bytes of opmath: more would spend registers, and
    with them programs on a multiprocessor."""
    itemsize, own = launch.opmath.itemsize, work.facts
    warps = block_size(itemsize, own.EMITS) * itemsize // (16 * 32)
    registers = REGISTERS_TO_SUM if own.EMITS else REGISTERS
    if own.STATES + own.READS_GRAD + own.READS_PARAM == 1:
        registers = REGISTERS_TO_NORM
    limit = {"maxnreg": registers} if itemsize == 4 else {}
    return {**OPTIONS, **limit, "num_warps": 4 if INTERPRETED else warps}


def programs(launch, work) -> int:
    """Programs of a pass. A chunk that is summed has one; so have those that are mostly empty."""
    chunks = len(launch.chunk)
    full = 2 * launch.elements > chunks * CHUNK.value
    return max(chunks * (PIECES if full and not work.facts.EMITS else 1), 1)


def prepare(launch, work) -> None:
    """Find what one pass is compiled for. (It is compiled when it first runs.)"""
    launch.check_columns(work.rule, work.facts.takes)
    work.prepared = (programs(launch, work),), {**constants(launch, work), **options(launch, work)}


def apply(launch, work) -> None:
    """Enqueue one pass over all tensors of ``launch`` on the current stream."""
    sums, (grid, compiled_for) = work.sums, work.prepared
    tables = (None,) * 9
    if sums is not None:
        tables = (
            sums.partial, sums.partial.shape[1], launch.slot, work.segment, sums.segment_begin,
            sums.segment_chunks, sums.segment_sums, sums.segment_result, sums.arrived,
        )  # fmt: skip
    # With and without a scale, kernels are compiled separately. Those that do not use it are given
    # none, or a CUDA graph that captures the first scaled step would have to load another kernel.
    grad_scale = launch.grad_scale if work.facts.READS_GRAD else None
    with np.errstate(all="ignore") if INTERPRETED else torch.cuda.device(launch.device):
        multi_tensor_apply[grid](
            launch.address, launch.grad, launch.numel, launch.row, launch.chunk, launch.hyper,
            launch.source, grad_scale, launch.skip_flag(work),
            launch.grad_norm_sq(work), launch.ticket,
            *tables, launch.numel.numel(), len(launch.chunk), **compiled_for,
        )  # fmt: skip
