"""The primitives a rule may call, named as in ``csrc/core/numerics.h``, ``kernels/numerics.py``."""

import numpy as np


def refuse_flushing() -> None:
    """Raise where this thread flushes subnormals to zero: the law could not be kept (N11)."""
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
    digits = word(52 if wide else 23)
    bias = word(1023 if wide else 127)
    offset = word(1023 if wide else 128)  # keeps n at or above 0; bias + offset = 3 third
    third = word(682 if wide else 85)
    drop = word(36 if wide else 16)  # what is left is a third of opmath's precision
    one = bias << digits
    fraction = (word(1) << digits) - word(1)
    inf = one + one + (word(1) << digits)

    bits = x.view(word)
    rest = bits & (inf + fraction)
    sign = bits - rest
    # A subnormal number is made normal, 2^(bias - 1) times as large, by an exact subtraction.
    subnormal = rest <= fraction
    scaled = ((one + (rest & fraction)).view(opmath) - opmath(1)).view(word)
    normal = select(subnormal, scaled, rest)
    # |x| = m 2^(3 (j - third)),  1 <= m < 8
    n = (normal >> digits) + offset
    n = select(subnormal, n - (bias - word(1)), n)
    j = (n * word(43691)) >> word(17)  # n / 3
    m = (((n - word(3) * j + bias) << digits) + (normal & fraction)).view(opmath)
    # y = (354 + 180 m - 20 m^2 + m^3) / 512: an error of 0.7 percent
    y = (opmath(354) + m * (opmath(180) - m * (opmath(20) - m))) * opmath(0.001953125)
    # Halley: y = y (y^3 + 2 m) / (2 y^3 + m), from an error of e to one of 2/3 e^3
    for _ in range(2 if wide else 1):
        cube = y * y * y
        y = y * div(cube + opmath(2) * m, opmath(2) * cube + m)
    # c is y rounded, so that m - c^3 is exact:  y - c = (m - c^3) / (y^2 + y c + c^2)
    half = word(1) << (drop - word(1))
    c = (((y.view(word) + half) >> drop) << drop).view(opmath)
    y = c + div(m - c * c * c, y * y + y * c + c * c)
    # Exact: no cube root is subnormal.
    root = y.view(word) + (j << digits) - (third << digits)
    itself = (rest == 0) | (rest >= inf)
    return select(itself, x, (root + sign).view(opmath))


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
