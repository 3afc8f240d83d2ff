"""The law's cube root (N5): how exact it is, and one result in every spelling."""

import ctypes
import os
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fusedstep import testing
from fusedstep.reference import numerics

try:
    import triton
    import triton.language as tl
    from fusedstep.kernels.numerics import cbrt
except ImportError:
    triton = None

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = {np.float32: (np.uint32, 23), np.float64: (np.uint64, 52)}
# Above the greatest error found, 1.439 ulp in float32 (all numbers), 1.40 in float64 (a sample)
ULPS = {np.float32: Fraction("1.44"), np.float64: Fraction("1.44")}


@pytest.fixture(params=WORDS, ids=lambda opmath: opmath.__name__)
def opmath(request):
    return request.param


def values(opmath, per_exponent: int) -> np.ndarray:
    """Random numbers of every exponent and sign, 0 and inf and NaN among them, and all powers."""
    word, digits = WORDS[opmath]
    high = np.arange(1 << (8 * opmath().nbytes - digits), dtype=word) << word(digits)
    low = np.random.default_rng(0).integers(0, 1 << digits, (per_exponent, 1), dtype=word)
    return np.concatenate([high, (high | low).ravel()]).view(opmath)


def test_every_float32_mantissa():
    """All numbers of [1, 8); others are these times a power of 8, from a slightly other start."""
    for start in range(127 << 23, 130 << 23, 1 << 18):
        x = np.arange(start, start + (1 << 18), dtype=np.uint32).view(np.float32)
        # (y^3 - x) / (3 y^2), off by 1e-8 ulp of the error in float64
        y = numerics.cbrt(x).astype(np.float64)
        error = (y * y * y - x) / (3 * y * y)
        assert np.abs(error).max() <= float(ULPS[np.float32]) * 2.0**-23


def test_every_exponent(opmath):
    """|y - x^(1/3)| in exact arithmetic."""
    x = values(opmath, per_exponent=64 if opmath is np.float32 else 4)
    x = x[np.isfinite(x) & (x > 0)]
    y = numerics.cbrt(x)
    for a, b, ulp in zip(x.tolist(), y.tolist(), np.spacing(y).tolist(), strict=True):
        allowed = ULPS[opmath] * Fraction(ulp)
        assert (Fraction(b) - allowed) ** 3 <= Fraction(a) <= (Fraction(b) + allowed) ** 3, a


def test_signs_zeros_and_specials(opmath):
    x = values(opmath, per_exponent=1)
    x = x[~np.isnan(x)]
    np.testing.assert_array_equal(numerics.cbrt(-x), -numerics.cbrt(x))
    inf = opmath("inf")
    x = np.array([0, -0.0, 1, -8, 27, 2.0**-30, inf, -inf, np.nan], opmath)
    want = np.array([0, -0.0, 1, -2, 3, 2.0**-10, inf, -inf, np.nan], opmath)
    assert testing.difference("cbrt", *map(torch.from_numpy, (numerics.cbrt(x), want))) is None


SOURCE = """
#include "cpu/pack.h"

using namespace fusedstep;

template <class T>
void elements(const T* x, T* y, long n) {
  for (long i = 0; i < n; ++i) y[i] = fusedstep::cbrt(x[i]);
}

template <bool kWhole, class V, class T>
void pack(const T* x, T* y, long n) {
  V root;
  load<kWhole>(root, x, n);
  store<kWhole>(cbrt(root), y, n);
}

template <class T>
void packs(const T* x, T* y, long n) {
  using Whole = Pack<T>;
  using Tail = Pack<T, kTailBytes>;
  long i = 0;
  for (; i + Whole::kSize <= n; i += Whole::kSize) pack<true, Whole>(x + i, y + i, n - i);
  for (; i < n; i += Tail::kSize) pack<false, Tail>(x + i, y + i, n - i);
}

extern "C" {
void elements_float32(const float* x, float* y, long n) { elements(x, y, n); }
void elements_float64(const double* x, double* y, long n) { elements(x, y, n); }
void packs_float32(const float* x, float* y, long n) { packs(x, y, n); }
void packs_float64(const double* x, double* y, long n) { packs(x, y, n); }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("cbrt")
    (folder / "cbrt.cpp").write_text(SOURCE)
    law = (REPOSITORY / "cmake" / "numerics.cmake").read_text()
    flags = re.search(r"FUSEDSTEP_CXX_NUMERICS([^)]*)", law)[1].split()
    flags += ["-std=c++17", "-march=native", "-fopenmp-simd", "-shared", "-fPIC"]
    files = [str(folder / "cbrt.cpp"), "-o", str(folder / "cbrt.so")]
    subprocess.run([compiler, *flags, "-I", str(REPOSITORY / "csrc"), *files], check=True)
    return ctypes.CDLL(str(folder / "cbrt.so"))


@pytest.mark.parametrize("by", ["elements", "packs"])
def test_cpp_gives_the_same_bits(by, opmath, library):
    x = values(opmath, per_exponent=100)[1:]  # the last pack is not whole
    y = np.empty_like(x)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, y))
    library[f"{by}_{opmath.__name__}"](*pointers, ctypes.c_long(len(x)))
    want = numerics.cbrt(x)
    assert testing.difference("cbrt", *map(torch.from_numpy, (y, want))) is None


if triton is not None:

    @triton.jit
    def roots(x, y, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + i, cbrt(tl.load(x + i, i < n)), i < n)


@pytest.mark.skipif(triton is None, reason="no triton")
def test_triton_gives_the_same_bits(opmath):
    x = values(opmath, per_exponent=100)
    want = torch.from_numpy(numerics.cbrt(x))
    x = torch.from_numpy(x).to("cuda" if torch.cuda.is_available() else "cpu")
    y = torch.empty_like(x)
    roots[(triton.cdiv(len(x), 4096),)](x, y, len(x), 4096, enable_fp_fusion=False)
    assert testing.difference("cbrt", y.cpu(), want) is None
