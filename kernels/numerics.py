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
def neg(x):
    # -x is 0 - x in Triton 3.6, whose zero has another sign
    return -1.0 * x


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
    drop: tl.constexpr = 22 if wide else 13
    third: tl.constexpr = 1398101 if wide else 2731  # 2^drop / 3
    start: tl.constexpr = 0x553EE90FF9724800 if wide else 0x54A30000  # 4/3 of one's bits, tuned
    smallest: tl.constexpr = 2.0**-1022 if wide else 2.0**-126

    bits = x.to(word, bitcast=True)
    size = (bits & (sign - 1)).to(opmath, bitcast=True)
    # A power of 8 makes a subnormal number a normal one.
    low = size < smallest
    a = size * select(low, 2.0**54 if wide else 2.0**24, 1.0)
    # r = a^(-1/3): a third of the exponent, negated, an error of 4 percent
    r = (start - (a.to(word, bitcast=True) >> drop) * third).to(opmath, bitcast=True)
    for _ in tl.static_range(2 if wide else 1):
        # h = 1 - a r^3,  r = r (1 - h)^(-1/3) = r (1 + h/3 + 2/9 h^2 + ...)
        h = 1.0 - a * r * r * r
        r = r + r * (h * (1.0 / 3.0 + 2.0 / 9.0 * h))
    # y = a r^2,  h = 1 - a r^3,  y = y (1 - h)^(-2/3) = y (1 + 2/3 h + 5/9 h^2 + ...)
    y = a * r * r
    h = 1.0 - y * r
    y = y + y * (h * (2.0 / 3.0 + 5.0 / 9.0 * h))
    y = y * select(low, 2.0**-18 if wide else 2.0**-8, 1.0)
    return (y.to(word, bitcast=True) | (bits & sign)).to(opmath, bitcast=True)


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
    n: tl.constexpr = lanes.shape[0]
    halves = tl.reshape(lanes, (2, n // 2)) if n > 1 else lanes
    # A split puts both halves, of this level and of the next ones, into one thread. It is used on
    # the levels that give the fewest barriers and accesses to shared memory in Triton 3.6 and 3.9.
    if n > 32 and n != 512:
        low, high = tl.split(tl.trans(halves))
        return fold(low + high)
    elif n > 1:
        return fold(tl.sum(halves, 0))
    else:
        return tl.sum(halves, 0)  # of one
