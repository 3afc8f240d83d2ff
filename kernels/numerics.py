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
def power(beta, t):
    """``beta**t`` by squaring, in float64 (N6); for one tensor or for a block of them."""
    result = tl.full(t.shape, 1.0, tl.float64)
    while (t if len(t.shape) == 0 else tl.max(t, 0)) > 0:
        result = tl.where((t & 1) != 0, result * beta, result)
        beta = beta * beta
        t = t >> 1
    return result
