"""The primitives a rule may call, named as in ``csrc/core/numerics.h`` and the reference: Triton.

The compiled kernels and the interpreter run the same lines. Launch with ``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError(
        f"triton {triton.__version__} flushes subnormal numbers in div_rn and sqrt_rn; "
        "run `pip install 'triton>=3.6'`"
    )


@triton.jit
def widen(memory, dtype: tl.constexpr, opmath: tl.constexpr):
    """Exactly widen memory to opmath (N1). ``memory`` is uint16 for bfloat16, else the numbers."""
    if dtype == tl.bfloat16:
        return (memory.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return memory.to(opmath)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Round opmath to memory once, to nearest even; NaN first (N1)."""
    if dtype == tl.bfloat16:
        # by the bits: the interpreter's own conversion truncates
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)
    else:
        # to float16 this is cvt.rn.f16.f32: one rounding, subnormals kept
        return x.to(dtype)


@triton.jit
def round_bf16(x):
    """What bfloat16 memory would give back; float64 is never stored so."""
    if x.dtype == tl.float64:
        return x
    else:
        return widen(narrow(x, tl.bfloat16), tl.bfloat16, tl.float32)


@triton.jit
def div(a, b):
    # plain / is div.full for float32, div.rn for float64, which div_rn rejects
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def sqrt(x):
    # likewise
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def float64(value: tl.constexpr):
    """A literal of the scalars: left alone it would become float32 first."""
    return tl.full((), value, tl.float64)


@triton.jit
def select(condition, yes, no):
    return tl.where(condition, yes, no)


@triton.jit
def ema(x, y, beta, one_minus_beta):
    """``beta x + (1 - beta) y``; the complement is a scalar of its own (N6)."""
    return beta * x + one_minus_beta * y


@triton.jit
def max(a, b):
    """N8: a NaN in ``b`` loses, a NaN in the stored ``a`` stays."""
    return select(b > a, b, a)


@triton.jit
def clip(b, lo, hi):
    """N8: low first, so that 0/0 becomes ``lo``."""
    b = select(b > lo, b, lo)
    return select(b < hi, b, hi)


@triton.jit
def cbrt(x):
    """The cube root of N5."""
    wide: tl.constexpr = x.dtype == tl.float64
    word: tl.constexpr = tl.uint64 if wide else tl.uint32
    opmath: tl.constexpr = x.dtype
    sign: tl.constexpr = 1 << (63 if wide else 31)
    third: tl.constexpr = 0x2A9F7893782DA1CE if wide else 0x2A5119F2  # of one's exponent, tuned
    half: tl.constexpr = 1 << (35 if wide else 15)  # of what c drops, 2/3 of opmath's precision
    kept: tl.constexpr = 2 * sign - 2 * half
    tiny: tl.constexpr = 2.0**-600 if wide else 2.0**-60

    bits = x.to(word, bitcast=True)
    size = (bits & (sign - 1)).to(opmath, bitcast=True)
    # A power of 8 takes the size to where nothing overflows and no bits are lost.
    low = size < tiny
    scaled = size * select(low, 1 / tiny, 2.0**-6)
    # In place of 0, whose steps would be subnormal, which is slow
    a = select(size > 0.0, scaled, 1.0)
    # A third of the exponent: an error of 3.3 percent
    y = (a.to(word, bitcast=True) // 3 + third).to(opmath, bitcast=True)
    # Halley: y = y (y^3 + 2 a) / (2 y^3 + a), from an error of e to one of 2/3 e^3
    for _ in tl.static_range(2 if wide else 1):
        cube = y * y * y
        y = y * div(cube + 2.0 * a, 2.0 * cube + a)
    # c is y rounded, so that a - c^3 is exact:  y - c = (a - c^3) / (y^2 + y c + c^2)
    c = ((y.to(word, bitcast=True) + half) & kept).to(opmath, bitcast=True)
    y = c + div(a - c * c * c, y * (y + c) + c * c)
    y = y * select(low, 2.0**-200 if wide else 2.0**-20, 4.0)
    root = (y.to(word, bitcast=True) | (bits & sign)).to(opmath, bitcast=True)
    return select((size > 0.0) & (size < float("inf")), root, x)


@triton.jit
def power(beta, t):
    """``beta**t`` by squaring, in float64 (N6); for one tensor or for a block of them."""
    result = tl.full(t.shape, 1.0, tl.float64)
    while (t if len(t.shape) == 0 else tl.max(t, 0)) > 0:
        result = tl.where((t & 1) != 0, result * beta, result)
        beta = beta * beta
        t = t >> 1
    return result


@triton.jit
def square(x):
    """In float64, exact for float32 (N7)."""
    return x.to(tl.float64) * x.to(tl.float64)


@triton.jit
def fold(lanes):
    """The sum of a block by halving (N7)."""
    if lanes.shape[0] > 1:
        return fold(tl.sum(tl.reshape(lanes, (2, lanes.shape[0] // 2)), 0))
    else:
        return tl.sum(lanes, 0)  # of one
