"""The Triton engine: one launch for the whole model, through tables that live on the device.

A rule's module gives ``HYPERS``, ``STATES``, ``CARRIED``, ``FADING`` and the functions ``faded``,
``scalars`` and ``update`` (csrc/core/rule.h); the engine never names a rule.
"""

from importlib import import_module

import numpy as np
import torch
import triton
import triton.language as tl

from .numerics import div, narrow, widen

CHUNK = tl.constexpr(16384)  # elements, a constant of the law (N7)
# The address table, [columns][N]: param, master, step, states..., carried...
PARAM, MASTER, STEP, STATE = (tl.constexpr(column) for column in range(4))
TENSORS = tl.constexpr(256)  # counts that the last program advances at once


@triton.jit
def hyper_value(hyper, source, entry, mask):
    """A hyper-parameter: the value in the table, or what its 0-d tensor holds now."""
    place = tl.load(source + entry, mask, other=0)
    wide = place & 1
    from64 = (place - wide).to(tl.pointer_type(tl.float64))
    from64 = tl.load(from64, mask & (wide == 1), other=0.0)
    from32 = place.to(tl.pointer_type(tl.float32))
    from32 = tl.load(from32, mask & (wide == 0) & (place != 0), other=0.0)
    value = tl.load(hyper + entry, mask, other=0.0)
    return tl.where(place == 0, value, tl.where(wide == 1, from64, from32.to(tl.float64)))


@triton.jit
def prologue(
    address, row, hyper, source, tensors, tensor, mask,
    faded: tl.constexpr, scalars: tl.constexpr, opmath: tl.constexpr,
    HYPERS: tl.constexpr, STATES: tl.constexpr, CARRIED: tl.constexpr,
):  # fmt: skip
    """What is known of one tensor, or of a block of them, before an element is touched."""
    entry = tl.load(row + tensor, mask, other=0) * HYPERS
    values = ()
    for j in tl.static_range(HYPERS):
        values += (hyper_value(hyper, source, entry + j, mask),)
    carried = ()
    for j in tl.static_range(CARRIED):
        place = tl.load(address + (STATE + STATES + j) * tensors + tensor, mask, other=0)
        carried += (tl.load(place.to(tl.pointer_type(tl.float64)), mask, other=0.0),)
    place = tl.load(address + STEP * tensors + tensor, mask, other=0)
    t = tl.load(place.to(tl.pointer_type(tl.int64)), mask, other=0) + 1
    s, advanced = scalars(values, t, carried, opmath)
    coefficient = tl.where(values[0] != 0.0, -1.0, 1.0).to(opmath)
    return s, coefficient, faded(carried), t, advanced


@triton.jit
def elements(place, begin, offsets, dtype: tl.constexpr, WHOLE: tl.constexpr):
    """Pointers to a block of a chunk; bfloat16 is read and written as its bits."""
    memory: tl.constexpr = tl.uint16 if dtype == tl.bfloat16 else dtype
    first = place.to(tl.pointer_type(memory)) + begin
    if WHOLE:
        first = tl.multiple_of(first, 16)
    return first + offsets


@triton.jit
def load(
    place, begin, offsets, mask, dtype: tl.constexpr, opmath: tl.constexpr, WHOLE: tl.constexpr
):
    pointers = elements(place, begin, offsets, dtype, WHOLE)
    memory = tl.load(pointers, mask, other=None if mask is None else 0)
    return widen(memory, dtype, opmath)


@triton.jit
def store(place, begin, offsets, mask, x, dtype: tl.constexpr, WHOLE: tl.constexpr):
    tl.store(elements(place, begin, offsets, dtype, WHOLE), narrow(x, dtype), mask)


@triton.jit
def apply_block(
    s, coefficient, scale, kept, gradient, param, master, states, begin, offset, n,
    update: tl.constexpr, variant: tl.constexpr, FADING: tl.constexpr, opmath: tl.constexpr,
    param_dtype: tl.constexpr, grad_dtype: tl.constexpr, exp_avg_dtype: tl.constexpr,
    BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    offsets = offset + tl.arange(0, BLOCK)
    mask = None if WHOLE else offsets < n
    g = load(gradient, begin, offsets, mask, grad_dtype, opmath, WHOLE)
    if master is not None:
        p = load(master, begin, offsets, mask, tl.float32, opmath, WHOLE)
    else:
        p = load(param, begin, offsets, mask, param_dtype, opmath, WHOLE)
    # A faded state is zero: neither read nor written. `kept` is 0 or CHUNK, so that the accesses
    # which it masks stay 16 bytes wide.
    fading = mask
    if FADING > 0:
        fading = offsets < kept if WHOLE else mask & (offsets < kept)
    state = (load(states[0], begin, offsets, mask, exp_avg_dtype, opmath, WHOLE),)
    for k in tl.static_range(1, len(states)):
        state_mask = fading if k == FADING else mask
        state += (load(states[k], begin, offsets, state_mask, opmath, opmath, WHOLE),)

    # after all loads are under way: a division that waits for one would hold up the others
    if scale is not None:
        g = div(g, scale)
    g = g * coefficient
    p, state = update(s, g, p, state, variant)

    store(states[0], begin, offsets, mask, state[0], exp_avg_dtype, WHOLE)
    for k in tl.static_range(1, len(states)):
        state_mask = fading if k == FADING else mask
        store(states[k], begin, offsets, state_mask, state[k], opmath, WHOLE)
    if master is not None:
        store(master, begin, offsets, mask, p, tl.float32, WHOLE)
    store(param, begin, offsets, mask, p, param_dtype, WHOLE)


@triton.jit
def advance(
    address, grad, row, hyper, source, tensors, faded: tl.constexpr, scalars: tl.constexpr,
    opmath: tl.constexpr, HYPERS: tl.constexpr, STATES: tl.constexpr, CARRIED: tl.constexpr,
):  # fmt: skip
    """After the last read of a launch: counts and carried scalars of the tensors that took part."""
    for first in range(0, tensors, TENSORS):
        tensor = first + tl.arange(0, TENSORS)
        here = tensor < tensors
        here = here & (tl.load(grad + tensor, here, other=0) != 0)
        _, _, _, t, carried = prologue(
            address, row, hyper, source, tensors, tensor, here, faded, scalars, opmath,
            HYPERS, STATES, CARRIED,
        )  # fmt: skip
        column = address + (STATE + STATES) * tensors + tensor
        for j in tl.static_range(CARRIED):
            place = tl.load(column + j * tensors, here, other=0)
            tl.store(place.to(tl.pointer_type(tl.float64)), carried[j], here)
        place = tl.load(address + STEP * tensors + tensor, here, other=0)
        tl.store(place.to(tl.pointer_type(tl.int64)), t, here)


# One chunk per program: the hardware hands out chunks as multiprocessors become free, and several
# programs share one, so that a prologue (dependent loads, float64) hides behind others' traffic.
# Tables and sizes are not specialised on: that would compile a kernel per model.
@triton.jit(do_not_specialize=[
    "address", "grad", "numel", "row", "chunk", "hyper", "source", "grad_scale", "found_inf",
    "ticket", "tensors", "chunks",
])  # fmt: skip
def multi_tensor_apply(
    address, grad, numel, row, chunk, hyper, source, grad_scale, found_inf, ticket, tensors, chunks,
    faded: tl.constexpr, scalars: tl.constexpr, update: tl.constexpr, variant: tl.constexpr,
    HYPERS: tl.constexpr, STATES: tl.constexpr, CARRIED: tl.constexpr, FADING: tl.constexpr,
    opmath: tl.constexpr, param_dtype: tl.constexpr, grad_dtype: tl.constexpr,
    exp_avg_dtype: tl.constexpr, masters: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    running = True
    if found_inf is not None:
        running = tl.load(found_inf) == 0.0
    if running:
        # one program without a chunk runs where every tensor is empty: their counts advance
        there = program < chunks
        tensor = tl.load(chunk + 2 * program, there, other=0)
        gradient = tl.load(grad + tensor, there, other=0)
        here = gradient != 0
        if here:
            s, coefficient, gone, _, _ = prologue(
                address, row, hyper, source, tensors, tensor, here, faded, scalars, opmath,
                HYPERS, STATES, CARRIED,
            )  # fmt: skip
            kept = tl.where(gone, 0, CHUNK)
            scale = None
            if grad_scale is not None:
                scale = tl.load(grad_scale).to(opmath)
            param = tl.load(address + PARAM * tensors + tensor)
            alignment = gradient | param
            master = None
            if masters:
                master = tl.load(address + MASTER * tensors + tensor)
                alignment |= master
            states = ()
            for k in tl.static_range(STATES):
                state = tl.load(address + (STATE + k) * tensors + tensor)
                alignment |= state
                states += (state,)
            # Full blocks of aligned memory first, without masks; then what is left. The same
            # arithmetic for both (N10).
            begin = tl.load(chunk + 2 * program + 1).to(tl.int64) * CHUNK
            n = tl.minimum(tl.load(numel + tensor) - begin, CHUNK).to(tl.int32)
            whole = tl.where((alignment & 15) == 0, n - n % BLOCK, 0)
            for offset in range(0, whole, BLOCK):
                apply_block(
                    s, coefficient, scale, kept, gradient, param, master, states, begin, offset, n,
                    update, variant, FADING, opmath, param_dtype, grad_dtype, exp_avg_dtype,
                    BLOCK, True,
                )  # fmt: skip
            for offset in range(whole, n, BLOCK):
                apply_block(
                    s, coefficient, scale, kept, gradient, param, master, states, begin, offset, n,
                    update, variant, FADING, opmath, param_dtype, grad_dtype, exp_avg_dtype,
                    BLOCK, False,
                )  # fmt: skip

        # A ticket says that its program has read what the last one to finish overwrites.
        tl.debug_barrier()
        if tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            advance(
                address, grad, row, hyper, source, tensors, faded, scalars, opmath,
                HYPERS, STATES, CARRIED,
            )  # fmt: skip
            tl.store(ticket, 0)


DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
INTERPRETED = not isinstance(multi_tensor_apply, triton.JITFunction)
# one stage: a block's loads must not be moved before an earlier block's stores
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}


def constants(launch) -> dict:
    """What one compiled kernel is for."""
    rule = import_module(f"{__package__}.{launch.rule}")
    return {
        "faded": rule.faded,
        "scalars": rule.scalars,
        "update": rule.update,
        "variant": launch.variant,
        "HYPERS": rule.HYPERS,
        "STATES": rule.STATES[launch.variant],
        "CARRIED": rule.CARRIED,
        "FADING": rule.FADING,
        "opmath": DTYPES[launch.opmath],
        "param_dtype": DTYPES[launch.param_dtype],
        "grad_dtype": DTYPES[launch.grad_dtype],
        "exp_avg_dtype": DTYPES[launch.exp_avg_dtype],
        "masters": bool(launch.master),
        # 16 bytes of opmath for each of a program's threads: more spends registers, and with them
        # programs on a multiprocessor. The interpreter's cost is in calls, not in elements.
        "BLOCK": 2048 if INTERPRETED else 2048 // launch.opmath.itemsize,
    }


def apply(launch) -> None:
    """Enqueue one step of all tensors of ``launch`` on the current stream."""
    chunks = launch.chunk.shape[0]
    with np.errstate(all="ignore") if INTERPRETED else torch.cuda.device(launch.device):
        multi_tensor_apply[(max(chunks, 1),)](
            launch.address, launch.grad, launch.numel, launch.row, launch.chunk, launch.hyper,
            launch.source, launch.grad_scale, launch.found_inf, launch.ticket,
            launch.numel.numel(), chunks, **constants(launch), **OPTIONS,
        )  # fmt: skip
