"""The primitives a rule may call, named as in ``csrc/core/numerics.h``, ``kernels/numerics.py``."""

import numpy as np


def check_environment() -> None:
    """Raise where this thread flushes subnormals to zero or does not round to nearest (N11)."""
    quarters = np.array([2.0**-25, 3 * 2.0**-25], dtype=np.float32)  # of the spacing at 1
    if ((quarters + np.float32(1)) != np.array([1.0, 1.0 + 2.0**-23], dtype=np.float32)).any():
        raise RuntimeError(
            "the reference backend needs rounding to nearest, but this thread rounds in another "
            "direction; call fesetround(FE_TONEAREST) first, or use backend='cpu'"
        )
    smallest = np.array([1e-45], dtype=np.float32)
    if (smallest * np.float32(1))[0] == 0:
        raise RuntimeError(
            "the reference backend needs subnormal numbers, but this thread flushes them to zero; "
            "call torch.set_flush_denormal(False) first, or use backend='cpu'"
        )


def widen(bits: np.ndarray, dtype: str, opmath: type) -> np.ndarray:
    """Exactly widen memory to opmath (N1). ``bits`` is uint16 for bfloat16, else the numbers."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(opmath)
    return bits.astype(opmath)


def narrow(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round opmath to memory once, to nearest even; NaN first (N1)."""
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        rounded = (
            bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        ) >> np.uint32(16)
        return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)
    return x.astype(dtype)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """What bfloat16 memory would give back; float64 is never stored so."""
    if x.dtype == np.float64:
        return x
    return widen(narrow(x, "bfloat16"), "bfloat16", np.float32)


def div(a, b):
    return a / b


def sqrt(x):
    return np.sqrt(x)


def select(condition, yes, no):
    return np.where(condition, yes, no)


def ema(x, y, beta, one_minus_beta):
    """``beta x + (1 - beta) y``; the complement is a scalar of its own (N6)."""
    return beta * x + one_minus_beta * y


def max(a, b):
    """N8: a NaN in ``b`` loses, a NaN in the stored ``a`` stays."""
    return select(b > a, b, a)


def clip(b, lo, hi):
    """N8: low first, so that 0/0 becomes ``lo``."""
    b = select(b > lo, b, lo)
    return select(b < hi, b, hi)


def cbrt(x):
    """The cube root of N5."""
    wide = x.dtype == np.float64
    word, opmath = (np.uint64, np.float64) if wide else (np.uint32, np.float32)
    sign = word(1 << (63 if wide else 31))
    drop, third = (word(22), word(1398101)) if wide else (word(13), word(2731))  # 2^drop / 3
    start = word(0x553EE90FF9724800 if wide else 0x54A30000)  # 4/3 of one's bits, tuned
    smallest = np.finfo(opmath).smallest_normal
    one, two, three, five, nine = (opmath(n) for n in (1, 2, 3, 5, 9))

    bits = x.view(word)
    size = (bits & ~sign).view(opmath)
    # A power of 8 makes a subnormal number a normal one.
    low = size < smallest
    a = size * select(low, opmath(2.0**54 if wide else 2.0**24), one)
    # r = a^(-1/3): a third of the exponent, negated, an error of 4 percent
    r = (start - (a.view(word) >> drop) * third).view(opmath)
    for _ in range(2 if wide else 1):
        # h = 1 - a r^3,  r = r (1 - h)^(-1/3) = r (1 + h/3 + 2/9 h^2 + ...)
        h = one - a * r * r * r
        r = r + r * (h * (one / three + two / nine * h))
    # y = a r^2,  h = 1 - a r^3,  y = y (1 - h)^(-2/3) = y (1 + 2/3 h + 5/9 h^2 + ...)
    y = a * r * r
    h = one - y * r
    y = y + y * (h * (two / three + five / nine * h))
    y = y * select(low, opmath(2.0**-18 if wide else 2.0**-8), one)
    return (y.view(word) | (bits & sign)).view(opmath)


def power(beta, t):
    """``beta**t`` by squaring, in float64 (N6)."""
    result = np.float64(1.0)
    while t > 0:
        if t & 1:
            result = result * beta
        beta = beta * beta
        t = t >> 1
    return result


def square(x):
    """In float64, exact for float32 (N7)."""
    return x.astype(np.float64) * x.astype(np.float64)


def tree(values):
    """The one summation tree (N7): 1,024 lanes, each in order, folded by halving."""
    lanes = np.zeros(1024)
    for first in range(0, len(values), 1024):
        block = values[first : first + 1024]
        lanes[: len(block)] = lanes[: len(block)] + block
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]
