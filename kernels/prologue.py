"""What is known of a tensor before an element is touched, and what becomes of its count after."""

import triton
import triton.language as tl

from ..reference import multi_tensor_apply as reference
from .numerics import neg, select, sqrt

# The address table, [columns][N]: param, master, step, states..., carried...
PARAM, MASTER, STEP, STATE = (tl.constexpr(column) for column in range(4))
OWN_HYPERS = tl.constexpr(reference.OWN_HYPERS)


@triton.jit
def hyper_values(hyper, source, entry, mask, ROW_SIZE: tl.constexpr):
    """A row of hyper-parameters: values in the table, or what their 0-d tensors hold now."""
    places = ()
    numbers = ()
    for j in tl.static_range(ROW_SIZE):
        places += (tl.load(source + entry + j, mask, other=0),)
        numbers += (tl.load(hyper + entry + j, mask, other=0.0),)
    values = ()
    for j in tl.static_range(ROW_SIZE):
        place = places[j]
        wide = place & 1
        from64 = (place - wide).to(tl.pointer_type(tl.float64))
        from64 = tl.load(from64, mask & (wide == 1), other=0.0)
        from32 = place.to(tl.pointer_type(tl.float32))
        from32 = tl.load(from32, mask & (wide == 0) & (place != 0), other=0.0)
        value = tl.where(wide == 1, from64, from32.to(tl.float64))
        values += (tl.where(place == 0, numbers[j], value),)
    return values


@triton.jit
def gradient_coefficient(maximize, max_norm, grad_norm_sq):
    """``min(1, max_grad_norm / (norm + 1e-6))``, negative where the step ascends."""
    coefficient = tl.full(maximize.shape, 1.0, tl.float64)
    if grad_norm_sq is not None:
        coefficient = max_norm / (sqrt(tl.load(grad_norm_sq)) + 1e-6)
        coefficient = select((coefficient > 1.0) | (max_norm == float("inf")), 1.0, coefficient)
    return select(maximize != 0.0, neg(coefficient), coefficient)


@triton.jit
def prologue(
    address, row, hyper, source, grad_norm_sq, segment, segment_sums, tensors, tensor, mask,
    faded: tl.constexpr, scalars: tl.constexpr, opmath: tl.constexpr,
    ROW_SIZE: tl.constexpr, STATES: tl.constexpr, CARRIED: tl.constexpr, SUMS: tl.constexpr,
    variant: tl.constexpr,
):  # fmt: skip
    """What is known of one tensor, or of a block of them, before an element is touched."""
    # all loads first: arithmetic that waits for one would hold up the others
    entry = tl.load(row + tensor, mask, other=0) * ROW_SIZE
    place = tl.load(address + STEP * tensors + tensor, mask, other=0)
    t = tl.load(place.to(tl.pointer_type(tl.int64)), mask, other=0) + 1
    carried = ()
    for j in tl.static_range(CARRIED):
        place = tl.load(address + (STATE + STATES + j) * tensors + tensor, mask, other=0)
        carried += (tl.load(place.to(tl.pointer_type(tl.float64)), mask, other=0.0),)
    sums = ()
    if SUMS > 0:
        place = tl.load(segment + tensor, mask, other=0)
        place = tl.load(segment_sums + place, mask, other=0).to(tl.pointer_type(tl.float64))
        for k in tl.static_range(SUMS):
            sums += (tl.load(place + k, mask, other=0.0),)
    own = hyper_values(hyper, source, entry, mask, ROW_SIZE)
    values = ()
    for j in tl.static_range(OWN_HYPERS, ROW_SIZE):
        values += (own[j],)
    coefficient = gradient_coefficient(own[0], own[1], grad_norm_sq).to(opmath)
    if SUMS > 0:
        s, advanced = scalars(values, t, carried, opmath, sums, variant)
    else:
        s, advanced = scalars(values, t, carried, opmath)
    return s, coefficient, faded(carried, opmath), t, advanced


@triton.jit
def advance(
    address, grad, row, hyper, source, grad_norm_sq, segment, segment_sums, tensors,
    faded: tl.constexpr, scalars: tl.constexpr, opmath: tl.constexpr, ROW_SIZE: tl.constexpr,
    STATES: tl.constexpr, CARRIED: tl.constexpr, SUMS: tl.constexpr, COUNTS_ALL: tl.constexpr,
    variant: tl.constexpr, TENSORS: tl.constexpr = 256,
):  # fmt: skip
    """After the last read of a launch: counts and carried scalars of the tensors that took part.
    TENSORS at once, one a thread or more: else several would hold the same count, and one might
    read it while another writes."""
    for first in range(0, tensors, TENSORS):
        tensor = first + tl.arange(0, TENSORS)
        here = tensor < tensors
        if not COUNTS_ALL:
            here = here & (tl.load(grad + tensor, here, other=0) != 0)
        _, _, _, t, carried = prologue(
            address, row, hyper, source, grad_norm_sq, segment, segment_sums, tensors, tensor, here,
            faded, scalars, opmath, ROW_SIZE, STATES, CARRIED, SUMS, variant,
        )  # fmt: skip
        column = address + (STATE + STATES) * tensors + tensor
        for j in tl.static_range(CARRIED):
            place = tl.load(column + j * tensors, here, other=0)
            tl.store(place.to(tl.pointer_type(tl.float64)), carried[j], here)
        place = tl.load(address + STEP * tensors + tensor, here, other=0)
        tl.store(place.to(tl.pointer_type(tl.int64)), t, here)


@triton.jit
def never_faded(carried, opmath: tl.constexpr):
    return tl.full((), False, tl.int1)
