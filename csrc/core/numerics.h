// The only primitives a rule may call, spelled alike in kernels/numerics.py and
// reference/numerics.py. The laws N1..N11 cited here are stated in docs/numerics.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define FUSEDSTEP_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FUSEDSTEP_HD __forceinline
#else
#define FUSEDSTEP_HD inline __attribute__((always_inline))
#endif

// Code compiled several times for several instruction sets must not share symbols.
#ifndef FUSEDSTEP_LEVEL
#define FUSEDSTEP_LEVEL generic
#endif

namespace fusedstep {

// 16-bit storage: the bits, without arithmetic.
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

inline namespace FUSEDSTEP_LEVEL {

template <class To, class From>
FUSEDSTEP_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Widening is exact (N1).
template <class T>
FUSEDSTEP_HD T widen(float x) {
  return T(x);
}

template <class T>
FUSEDSTEP_HD T widen(double x) {
  static_assert(sizeof(T) == sizeof(double), "float64 memory needs float64 opmath");
  return T(x);
}

template <class T>
FUSEDSTEP_HD T widen(bf16 x) {
  return T(bit_cast<float>(std::uint32_t(x.bits) << 16));
}

// float16 to float32: normal numbers by moving the exponent, subnormals by an exact subtraction.
template <class T>
FUSEDSTEP_HD T widen(f16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
  const std::uint32_t rest = std::uint32_t(x.bits & 0x7FFFu) << 13;
  const std::uint32_t exponent = rest & 0x0F800000u;
  const std::uint32_t normal = rest + 0x38000000u;   // rebias by 127 - 15
  const std::uint32_t special = rest + 0x70000000u;  // inf and NaN keep an exponent of ones
  const float tiny = bit_cast<float>(rest + 0x38800000u) - bit_cast<float>(0x38800000u);
  const std::uint32_t bits = exponent == 0x0F800000u ? special
                             : exponent == 0         ? bit_cast<std::uint32_t>(tiny)
                                                     : normal;
  return T(bit_cast<float>(bits | sign));
}

// Narrowing rounds once, to nearest even, by the bits; NaN first (N1).
FUSEDSTEP_HD void narrow(float x, float& to) { to = x; }
FUSEDSTEP_HD void narrow(double x, double& to) { to = x; }

FUSEDSTEP_HD void narrow(float x, bf16& to) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  to.bits = std::uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

FUSEDSTEP_HD void narrow(float x, f16& to) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t rest = bits & 0x7FFFFFFFu;
  const std::uint32_t normal = (rest - 0x38000000u + 0x0FFFu + ((rest >> 13) & 1u)) >> 13;
  // Adding 0.5 makes the hardware round to multiples of 2^-24, float16's subnormal step.
  const std::uint32_t tiny = bit_cast<std::uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u;
  const std::uint32_t half = rest > 0x7F800000u    ? 0x7E00u
                             : rest >= 0x477FF000u ? 0x7C00u  // 65520 and more round to inf
                             : rest < 0x38800000u  ? tiny
                                                   : normal;
  to.bits = std::uint16_t(half | sign);
}

// What bfloat16 memory would give back; float64 is never stored so.
FUSEDSTEP_HD float round_bf16(float x) {
  bf16 stored;
  narrow(x, stored);
  return widen<float>(stored);
}
FUSEDSTEP_HD double round_bf16(double x) { return x; }

// Arithmetic of N2. Plain + - * stay operators: the build forbids contraction (N3).
FUSEDSTEP_HD float div(float a, float b) { return a / b; }
FUSEDSTEP_HD double div(double a, double b) { return a / b; }
FUSEDSTEP_HD float sqrt(float x) { return ::sqrtf(x); }
FUSEDSTEP_HD double sqrt(double x) { return ::sqrt(x); }

template <class T>
FUSEDSTEP_HD T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

// beta x + (1 - beta) y; the complement is a scalar of its own (N6).
template <class T>
FUSEDSTEP_HD T ema(T x, T y, T beta, T one_minus_beta) {
  return beta * x + one_minus_beta * y;
}

// N8: a NaN in b loses, a NaN in the stored a stays.
template <class T>
FUSEDSTEP_HD T max(T a, T b) {
  return select(b > a, b, a);
}

// N8: low first, so that 0/0 becomes lo.
template <class T>
FUSEDSTEP_HD T clip(T b, T lo, T hi) {
  b = select(b > lo, b, lo);
  return select(b < hi, b, hi);
}

// The cube root of N5.
template <class T>
FUSEDSTEP_HD T cbrt(T x) {
  constexpr bool wide = sizeof(T) == sizeof(double);
  using Word = std::conditional_t<wide, std::uint64_t, std::uint32_t>;
  constexpr int digits = wide ? 52 : 23;
  constexpr Word bias = wide ? 1023 : 127;
  constexpr Word offset = wide ? 1023 : 128;  // keeps n at or above 0; bias + offset = 3 third
  constexpr Word third = wide ? 682 : 85;
  constexpr int drop = wide ? 36 : 16;  // what is left is a third of T's precision
  constexpr Word one = bias << digits;
  constexpr Word fraction = (Word(1) << digits) - 1;
  constexpr Word inf = one + one + (Word(1) << digits);

  const Word bits = bit_cast<Word>(x);
  const Word rest = bits & (inf + fraction);
  const Word sign = bits - rest;
  // A subnormal number is made normal, 2^(bias - 1) times as large, by an exact subtraction.
  const bool subnormal = rest <= fraction;
  const Word scaled = bit_cast<Word>(bit_cast<T>(one + (rest & fraction)) - T(1));
  const Word normal = select(subnormal, scaled, rest);
  // |x| = m 2^(3 (j - third)),  1 <= m < 8
  Word n = (normal >> digits) + offset;
  n = select(subnormal, n - (bias - 1), n);
  const Word j = (n * 43691) >> 17;  // n / 3
  const T m = bit_cast<T>(((n - 3 * j + bias) << digits) + (normal & fraction));
  // y = (354 + 180 m - 20 m^2 + m^3) / 512: an error of 0.7 percent
  T y = (T(354) + m * (T(180) - m * (T(20) - m))) * T(0.001953125);
  // Halley: y = y (y^3 + 2 m) / (2 y^3 + m), from an error of e to one of 2/3 e^3
  for (int step = 0; step < (wide ? 2 : 1); ++step) {
    const T cube = y * y * y;
    y = y * div(cube + T(2) * m, T(2) * cube + m);
  }
  // c is y rounded, so that m - c^3 is exact:  y - c = (m - c^3) / (y^2 + y c + c^2)
  const Word half = Word(1) << (drop - 1);
  const T c = bit_cast<T>(((bit_cast<Word>(y) + half) >> drop) << drop);
  y = c + div(m - c * c * c, y * y + y * c + c * c);
  // Exact: no cube root is subnormal.
  const Word root = bit_cast<Word>(y) + (j << digits) - (third << digits);
  const bool itself = (rest == 0) | (rest >= inf);
  return select(itself, x, bit_cast<T>(root + sign));
}

// beta^t by squaring (N6).
FUSEDSTEP_HD double power(double beta, std::int64_t t) {
  double result = 1.0;
  while (t > 0) {
    if (t & 1) result = result * beta;
    beta = beta * beta;
    t = t >> 1;
  }
  return result;
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
