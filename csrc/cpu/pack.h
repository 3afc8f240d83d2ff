// A pack: elements of a block that go through a rule together, as numerics.h's V.
//
// A rule is a long chain of dependent operations. Several vectors that take each operation in turn
// keep the processor busy where one would wait for its own results. Operators work element by
// element: a pack changes no bit (N10).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/numerics.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Pack {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr int kVector = kVectorBytes / int(sizeof(T)), kSize = 2 * kVector;
  Vector a, b;  // an array would go through memory

  Pack() = default;
  FUSEDSTEP_HD Pack(Vector a, Vector b) : a(a), b(b) {}
  explicit FUSEDSTEP_HD Pack(T x) : a(x - Vector{}), b(a) {}
};

template <class T>
struct Element<Pack<T>> {
  using type = T;
};
template <class T>
struct Word<Pack<T>> {
  using type = Pack<WordOf<T>>;
};

// What a comparison gives: of every element all bits or none.
template <class T>
using Mask = Pack<std::make_signed_t<WordOf<T>>>;

template <class To, class T>
FUSEDSTEP_HD To bit_cast(const Pack<T>& x) {
  using Vector = typename To::Vector;
  return {Vector(x.a), Vector(x.b)};
}

// Pack and pack, pack and number, number and pack.
#define FUSEDSTEP_OPERATOR(Result, op)                                         \
  template <class T>                                                           \
  FUSEDSTEP_HD Result<T> operator op(const Pack<T>& x, const Pack<T>& y) {     \
    using Vector = typename Result<T>::Vector;                                 \
    return {Vector(x.a op y.a), Vector(x.b op y.b)};                           \
  }                                                                            \
  template <class T>                                                           \
  FUSEDSTEP_HD Result<T> operator op(const Pack<T>& x, ElementOf<Pack<T>> y) { \
    return x op Pack<T>(y);                                                    \
  }                                                                            \
  template <class T>                                                           \
  FUSEDSTEP_HD Result<T> operator op(ElementOf<Pack<T>> x, const Pack<T>& y) { \
    return Pack<T>(x) op y;                                                    \
  }
FUSEDSTEP_OPERATOR(Pack, +)
FUSEDSTEP_OPERATOR(Pack, -)
FUSEDSTEP_OPERATOR(Pack, *)
FUSEDSTEP_OPERATOR(Pack, /)
FUSEDSTEP_OPERATOR(Pack, &)
FUSEDSTEP_OPERATOR(Pack, |)
FUSEDSTEP_OPERATOR(Pack, <<)
FUSEDSTEP_OPERATOR(Pack, >>)
FUSEDSTEP_OPERATOR(Mask, <)
FUSEDSTEP_OPERATOR(Mask, <=)
FUSEDSTEP_OPERATOR(Mask, >)
FUSEDSTEP_OPERATOR(Mask, >=)
FUSEDSTEP_OPERATOR(Mask, ==)
FUSEDSTEP_OPERATOR(Mask, !=)
#undef FUSEDSTEP_OPERATOR

template <class T>
FUSEDSTEP_HD Pack<T> operator-(const Pack<T>& x) {
  return {-x.a, -x.b};
}

template <class T>
FUSEDSTEP_HD Pack<T> select(const Mask<T>& condition, const Pack<T>& yes, const Pack<T>& no) {
  return {condition.a ? yes.a : no.a, condition.b ? yes.b : no.b};
}

template <class T>
FUSEDSTEP_HD Pack<T> select(bool condition, const Pack<T>& yes, const Pack<T>& no) {
  return {condition ? yes.a : no.a, condition ? yes.b : no.b};
}

template <class T>
FUSEDSTEP_HD Pack<T> div(const Pack<T>& x, const Pack<T>& y) {
  return x / y;
}

#if defined(__AVX512F__)
FUSEDSTEP_HD __m512 sqrt(__m512 x) { return _mm512_sqrt_ps(x); }
FUSEDSTEP_HD __m512d sqrt(__m512d x) { return _mm512_sqrt_pd(x); }
#elif defined(__AVX2__)
FUSEDSTEP_HD __m256 sqrt(__m256 x) { return _mm256_sqrt_ps(x); }
FUSEDSTEP_HD __m256d sqrt(__m256d x) { return _mm256_sqrt_pd(x); }
#elif defined(__SSE2__)
FUSEDSTEP_HD __m128 sqrt(__m128 x) { return _mm_sqrt_ps(x); }
FUSEDSTEP_HD __m128d sqrt(__m128d x) { return _mm_sqrt_pd(x); }
#else
template <class Vector>
FUSEDSTEP_HD Vector sqrt(Vector x) {
  for (int i = 0; i < int(sizeof(Vector) / sizeof(x[0])); ++i) x[i] = sqrt(x[i]);
  return x;
}
#endif

template <class T>
FUSEDSTEP_HD Pack<T> sqrt(const Pack<T>& x) {
  return {sqrt(x.a), sqrt(x.b)};
}

// A vector's first n elements, n <= 0 and n >= its size included; the others are loaded as 0 and
// not stored.
#if defined(__AVX512F__)
FUSEDSTEP_HD unsigned first(int n, int size) {
  return n < size ? (1u << (n > 0 ? n : 0)) - 1 : ~0u;
}
FUSEDSTEP_HD __m512 load_first(const float* memory, int n) {
  return _mm512_maskz_loadu_ps(__mmask16(first(n, 16)), memory);
}
FUSEDSTEP_HD __m512d load_first(const double* memory, int n) {
  return _mm512_maskz_loadu_pd(__mmask8(first(n, 8)), memory);
}
FUSEDSTEP_HD void store_first(__m512 x, float* memory, int n) {
  _mm512_mask_storeu_ps(memory, __mmask16(first(n, 16)), x);
}
FUSEDSTEP_HD void store_first(__m512d x, double* memory, int n) {
  _mm512_mask_storeu_pd(memory, __mmask8(first(n, 8)), x);
}
#else
template <class T, class Vector = typename Pack<T>::Vector>
FUSEDSTEP_HD Vector load_first(const T* memory, int n) {
  Vector x = {};
  if (n >= Pack<T>::kVector)
    std::memcpy(&x, memory, sizeof x);
  else if (n > 0)
    std::memcpy(&x, memory, n * sizeof(T));
  return x;
}
template <class T, class Vector = typename Pack<T>::Vector>
FUSEDSTEP_HD void store_first(Vector x, T* memory, int n) {
  if (n >= Pack<T>::kVector)
    std::memcpy(memory, &x, sizeof x);
  else if (n > 0)
    std::memcpy(memory, &x, n * sizeof(T));
}
#endif

// Memory is not aligned. Whole packs are moved vector by vector, so that they stay in registers.
template <bool kWhole, class T>
FUSEDSTEP_HD void load(Pack<T>& x, const T* memory, int n) {
  constexpr int size = Pack<T>::kVector;
  typedef typename Pack<T>::Vector Unaligned __attribute__((aligned(alignof(T))));
  if constexpr (kWhole) {
    const Unaligned* vector = reinterpret_cast<const Unaligned*>(memory);
    x = {vector[0], vector[1]};
  } else {
    x = {load_first(memory, n), load_first(memory + size, n - size)};
  }
}

template <bool kWhole, class T>
FUSEDSTEP_HD void store(const Pack<T>& x, T* memory, int n) {
  constexpr int size = Pack<T>::kVector;
  typedef typename Pack<T>::Vector Unaligned __attribute__((aligned(alignof(T))));
  if constexpr (kWhole) {
    Unaligned* vector = reinterpret_cast<Unaligned*>(memory);
    vector[0] = x.a;
    vector[1] = x.b;
  } else {
    store_first(x.a, memory, n);
    store_first(x.b, memory + size, n - size);
  }
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
