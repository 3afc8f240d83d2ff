"""The Triton engine: one launch for the whole model, through tables that live on the device.

A rule's module has the functions ``scalars`` and ``update``, and ``faded`` where a state fades; the
reference's module states its facts. The engine never names a rule.
"""

import triton
import triton.language as tl

from ..reference import multi_tensor_apply as reference
from .numerics import div, fold, narrow, square, widen
from .prologue import MASTER, PARAM, STATE, advance, prologue
from .sums import LANES, arrive

CHUNK = tl.constexpr(reference.CHUNK)
STAGES = tl.constexpr(3)  # blocks of a column that are under way; no two of them share memory


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
    s, coefficient, scale, kept, gradient, param, master, states, lanes, begin, offset, n,
    update: tl.constexpr, variant: tl.constexpr, HYPERS: tl.constexpr, FADING: tl.constexpr,
    opmath: tl.constexpr, param_dtype: tl.constexpr, grad_dtype: tl.constexpr,
    exp_avg_dtype: tl.constexpr, SUMS: tl.constexpr, EMITS: tl.constexpr,
    READS_GRAD: tl.constexpr, READS_PARAM: tl.constexpr, MOVES_PARAM: tl.constexpr,
    READ_ONLY: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, WHOLE_GRAD: tl.constexpr,
):  # fmt: skip
    offsets = offset + tl.arange(0, BLOCK)
    mask = None if WHOLE else offsets < n
    g = None
    if READS_GRAD:
        g = load(gradient, begin, offsets, mask, grad_dtype, opmath, WHOLE_GRAD)
    p = tl.zeros((BLOCK,), opmath)  # Triton 3.6 cannot return None, as update would
    if READS_PARAM:
        if master is not None:
            p = load(master, begin, offsets, mask, tl.float32, opmath, WHOLE)
        else:
            p = load(param, begin, offsets, mask, param_dtype, opmath, WHOLE)
    # A faded state is zero: neither read nor written. `kept` is 0 or CHUNK, so that the accesses
    # which it masks stay 16 bytes wide.
    fading = mask
    if FADING > 0:
        fading = offsets < kept if WHOLE else mask & (offsets < kept)
    state = ()
    for k in tl.static_range(len(states)):
        state_mask = fading if k == FADING else mask
        state += (
            load(
                states[k], begin, offsets, state_mask, exp_avg_dtype if k == 0 else opmath, opmath,
                WHOLE,
            ),
        )  # fmt: skip

    # after all loads are under way: a division that waits for one would hold up the others
    if READS_GRAD:
        if scale is not None:
            g = div(g, scale)
        if HYPERS > 0:  # else it sums the squares of gradients, before they are clipped (N7)
            g = g * coefficient
    if SUMS > 0:
        p, state, out = update(s, g, p, state, variant)
    else:
        p, state = update(s, g, p, state, variant)

    for k in tl.static_range(len(states) - READ_ONLY):
        state_mask = fading if k == FADING else mask
        store(
            states[k], begin, offsets, state_mask, state[k], exp_avg_dtype if k == 0 else opmath,
            WHOLE,
        )  # fmt: skip
    if MOVES_PARAM:
        if master is not None:
            store(master, begin, offsets, mask, p, tl.float32, WHOLE)
        store(param, begin, offsets, mask, p, param_dtype, WHOLE)
    sums = ()
    if EMITS:
        for k in tl.static_range(SUMS):
            squared = square(out[k])
            if not WHOLE:
                squared = tl.where(mask, squared, 0.0)
            sums += (lanes[k] + squared,)
    return sums


# Programs are short-lived, a few for each chunk: the hardware starts them as multiprocessors become
# free, all work in a narrow stretch of every column, which is faster, and a prologue (dependent
# loads, float64) is hidden by the memory traffic of others.
# Tables and sizes are not specialised on: that would compile a kernel per model.
@triton.jit(do_not_specialize=[
    "address", "grad", "numel", "row", "chunk", "hyper", "source", "grad_scale", "found_inf",
    "grad_norm_sq", "ticket", "partial", "slots", "slot", "segment", "segment_begin",
    "segment_chunks", "segment_sums", "segment_result", "arrived", "tensors", "chunks",
])  # fmt: skip
def multi_tensor_apply(
    address, grad, numel, row, chunk, hyper, source, grad_scale, found_inf, grad_norm_sq, ticket,
    partial, slots, slot, segment, segment_begin, segment_chunks, segment_sums, segment_result,
    arrived, tensors, chunks,
    faded: tl.constexpr, scalars: tl.constexpr, update: tl.constexpr, variant: tl.constexpr,
    ROW_SIZE: tl.constexpr, HYPERS: tl.constexpr, STATES: tl.constexpr, CARRIED: tl.constexpr,
    FADING: tl.constexpr, SUMS: tl.constexpr, EMITS: tl.constexpr, COUNTED: tl.constexpr,
    KEEPS_ABSENT: tl.constexpr, READS_GRAD: tl.constexpr, READS_PARAM: tl.constexpr,
    MOVES_PARAM: tl.constexpr, READ_ONLY: tl.constexpr, SERVES_ALL: tl.constexpr,
    COUNTS_ALL: tl.constexpr, opmath: tl.constexpr, param_dtype: tl.constexpr,
    grad_dtype: tl.constexpr, exp_avg_dtype: tl.constexpr,
    masters: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    running = True
    if found_inf is not None:
        running = tl.load(found_inf) == 0.0
    if running:
        # one program without a chunk runs where every tensor is empty: their counts advance
        there = chunks > 0
        pieces = tl.num_programs(0) // tl.maximum(chunks, 1)
        size = CHUNK // pieces
        tensor = tl.load(chunk + 2 * (program // pieces), there, other=0)
        index = tl.load(chunk + 2 * (program // pieces) + 1, there, other=0).to(tl.int64)
        begin = index * CHUNK + program % pieces * size
        left = tl.load(numel + tensor, there, other=0) - begin
        gradient = tl.load(grad + tensor, there, other=0)
        here = (there if SERVES_ALL else gradient != 0) & (left > 0)
        if EMITS:  # before the work, which hides the wait
            place = partial + tl.load(slot + tensor, there, other=0) + index
            own_segment = tl.load(segment + tensor, there, other=0)
        if here:
            # whether there is a gradient beside other columns
            GRAD_BESIDE: tl.constexpr = READS_GRAD and (READS_PARAM or STATES > 0)
            # these first: they are under way while the prologue waits
            alignment = gradient if READS_GRAD and not GRAD_BESIDE else 0
            param = None
            master = None
            if READS_PARAM or MOVES_PARAM:
                param = tl.load(address + PARAM * tensors + tensor)
                alignment |= param
                if masters:
                    master = tl.load(address + MASTER * tensors + tensor)
                    alignment |= master
            states = ()
            for k in tl.static_range(STATES):
                state = tl.load(address + (STATE + k) * tensors + tensor)
                alignment |= state
                states += (state,)
            s, coefficient, gone, _, _ = prologue(
                address, row, hyper, source, grad_norm_sq, segment, segment_sums, tensors, tensor,
                here, faded, scalars, opmath, ROW_SIZE, STATES, CARRIED, SUMS, variant,
            )  # fmt: skip
            kept = tl.where(gone, 0, CHUNK)
            scale = None
            if grad_scale is not None:
                scale = tl.load(grad_scale).to(opmath)
            lanes = ()
            if EMITS:
                for _ in tl.static_range(SUMS):
                    lanes += (tl.zeros((LANES,), tl.float64),)
            # Full blocks of aligned memory without masks; those where only the gradient is not
            # aligned; what is left. The same arithmetic for all (N10).
            n = tl.minimum(left, size).to(tl.int32)
            whole = tl.where((alignment & 15) == 0, n - n % BLOCK, 0)
            ahead = whole
            if GRAD_BESIDE:
                ahead = tl.where((gradient & 15) == 0, whole, 0)
            firsts, ends = (0, 0, whole), (ahead, whole - ahead, n)
            for part in tl.static_range(3):
                if part != 1 or GRAD_BESIDE:
                    for offset in tl.range(
                        firsts[part], ends[part], BLOCK, num_stages=STAGES if part == 0 else 1
                    ):
                        lanes = apply_block(
                            s, coefficient, scale, kept, gradient, param, master, states, lanes,
                            begin, offset, n, update, variant, HYPERS, FADING, opmath, param_dtype,
                            grad_dtype, exp_avg_dtype, SUMS, EMITS, READS_GRAD, READS_PARAM,
                            MOVES_PARAM, READ_ONLY, BLOCK, part < 2, part == 0,
                        )  # fmt: skip
            if EMITS:
                for k in tl.static_range(SUMS):
                    tl.store(place + k * slots, fold(lanes[k]))
        if EMITS:  # noqa: SIM102
            if there:
                if not KEEPS_ABSENT and not SERVES_ALL:
                    for k in tl.static_range(SUMS):
                        tl.store(place + k * slots, 0.0, gradient == 0)
                arrive(
                    partial, slots, segment_begin, segment_chunks, segment_result, arrived,
                    own_segment, SUMS, COUNTED and not KEEPS_ABSENT,
                )  # fmt: skip

        # A ticket says that its program has read what the last one to finish overwrites.
        if MOVES_PARAM:
            # a thread holds 16 bytes of opmath: enqueue.py
            THREADS: tl.constexpr = BLOCK * (8 if opmath == tl.float64 else 4) // 16
            tl.debug_barrier()
            if tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1:
                advance(
                    address, grad, row, hyper, source, grad_norm_sq, segment, segment_sums, tensors,
                    faded, scalars, opmath, ROW_SIZE, STATES, CARRIED, SUMS, COUNTS_ALL, variant,
                    THREADS if THREADS > 256 else 256,
                )  # fmt: skip
                tl.store(ticket, 0)
