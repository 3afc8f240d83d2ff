// The only primitives a rule may call, spelled alike in kernels/numerics.py and
// reference/numerics.py. The laws N1..N11 cited here are stated in docs/numerics.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define FUSEDSTEP_HD __host__ __device__ __forceinline__
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

// Functions of V take one element, a float or a double, or a pack of them (cpu/pack.h).
template <class V>
struct Element {
  using type = V;
};
template <class V>
using ElementOf = typename Element<V>::type;

// The unsigned integers of the same bits.
template <class V>
struct Word {
  using type = std::conditional_t<sizeof(V) == 8, std::uint64_t, std::uint32_t>;
};
template <class V>
using WordOf = typename Word<V>::type;

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

template <class V>
FUSEDSTEP_HD V select(bool condition, V yes, V no) {
  return condition ? yes : no;
}

// Narrowing rounds once, to nearest even, by the bits; NaN first (N1).
template <class W>
FUSEDSTEP_HD W bf16_bits(W bits) {
  const W rounded = (bits + 0x7FFFu + ((bits >> 16u) & 1u)) >> 16u;
  return select((bits & 0x7FFFFFFFu) > 0x7F800000u, W(0x7FC0u), rounded);
}

FUSEDSTEP_HD void narrow(float x, float& to) { to = x; }
FUSEDSTEP_HD void narrow(double x, double& to) { to = x; }

FUSEDSTEP_HD void narrow(float x, bf16& to) {
  to.bits = std::uint16_t(bf16_bits(bit_cast<std::uint32_t>(x)));
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
template <class V>
FUSEDSTEP_HD V round_bf16(V x) {
  if constexpr (sizeof(ElementOf<V>) == sizeof(float))
    return bit_cast<V>(bf16_bits(bit_cast<WordOf<V>>(x)) << 16u);
  else
    return x;
}

// Arithmetic of N2. Plain + - * stay operators: the build forbids contraction (N3).
FUSEDSTEP_HD float div(float a, float b) { return a / b; }
FUSEDSTEP_HD double div(double a, double b) { return a / b; }
FUSEDSTEP_HD float sqrt(float x) { return ::sqrtf(x); }
FUSEDSTEP_HD double sqrt(double x) { return ::sqrt(x); }

// beta x + (1 - beta) y; the complement is a scalar of its own (N6).
template <class V>
FUSEDSTEP_HD V ema(V x, V y, ElementOf<V> beta, ElementOf<V> one_minus_beta) {
  return beta * x + one_minus_beta * y;
}

// N8: a NaN in b loses, a NaN in the stored a stays.
template <class V>
FUSEDSTEP_HD V max(V a, V b) {
  return select(b > a, b, a);
}

// N8: low first, so that 0/0 becomes lo.
template <class V>
FUSEDSTEP_HD V clip(V b, ElementOf<V> lo, ElementOf<V> hi) {
  b = select(b > lo, b, V(lo));
  return select(b < hi, b, V(hi));
}

// The cube root of N5.
template <class V>
FUSEDSTEP_HD V cbrt(V x) {
  using T = ElementOf<V>;
  using W = WordOf<T>;
  constexpr bool wide = sizeof(T) == sizeof(double);
  constexpr W sign = W(1) << (wide ? 63 : 31);
  constexpr W drop = wide ? 22 : 13, third = wide ? 1398101 : 2731;  // 2^drop / 3
  constexpr W start = wide ? 0x553EE90FF9724800 : 0x54A30000;        // 4/3 of one's bits, tuned
  constexpr T smallest = wide ? T(0x1p-1022) : T(0x1p-126);          // that is normal

  const WordOf<V> bits = bit_cast<WordOf<V>>(x);
  const V size = bit_cast<V>(bits & ~sign);
  // A power of 8 makes a subnormal number a normal one.
  const auto low = size < smallest;
  const V a = size * select(low, V(wide ? T(0x1p54) : T(0x1p24)), V(T(1)));
  // r = a^(-1/3): a third of the exponent, negated, an error of 4 percent
  V r = bit_cast<V>(start - (bit_cast<WordOf<V>>(a) >> drop) * third);
  for (int step = 0; step < (wide ? 2 : 1); ++step) {
    // h = 1 - a r^3,  r = r (1 - h)^(-1/3) = r (1 + h/3 + 2/9 h^2 + ...)
    const V h = T(1) - a * r * r * r;
    r = r + r * (h * (T(1) / T(3) + T(2) / T(9) * h));
  }
  // y = a r^2,  h = 1 - a r^3,  y = y (1 - h)^(-2/3) = y (1 + 2/3 h + 5/9 h^2 + ...)
  V y = a * r * r;
  const V h = T(1) - y * r;
  y = y + y * (h * (T(2) / T(3) + T(5) / T(9) * h));
  y = y * select(low, V(wide ? T(0x1p-18) : T(0x1p-8)), V(T(1)));
  return bit_cast<V>(bit_cast<WordOf<V>>(y) | (bits & sign));
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
