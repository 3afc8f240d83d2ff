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


def power(beta, t):
    """``beta**t`` by squaring, in float64 (N6)."""
    result = np.float64(1.0)
    while t > 0:
        if t & 1:
            result = result * beta
        beta = beta * beta
        t = t >> 1
    return result
