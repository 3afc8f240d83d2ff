// A pack: elements of a block that go through a rule together, as numerics.h's V.
//
// A rule is a long chain of dependent operations. Several vectors that take each operation in turn
// keep the processor busy where one would wait for its own results. Operators work element by
// element: a pack changes no bit (N10).
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/numerics.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTailBytes = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTailBytes = 16;
#else
constexpr int kVectorBytes = 16, kTailBytes = 16;
#endif

// A block's last elements go in narrower vectors: a root takes as long as its vector is wide.
template <class T, int kBytes = kVectorBytes>
struct Pack {
  typedef T Vector __attribute__((vector_size(kBytes)));
  static constexpr int kVector = kBytes / int(sizeof(T)), kSize = 2 * kVector;
  Vector a, b;  // an array would go through memory

  Pack() = default;
  FUSEDSTEP_HD Pack(Vector a, Vector b) : a(a), b(b) {}
  explicit FUSEDSTEP_HD Pack(T x) : a(x - Vector{}), b(a) {}
};

template <class T, int kBytes>
struct Element<Pack<T, kBytes>> {
  using type = T;
};
template <class T, int kBytes>
struct Word<Pack<T, kBytes>> {
  using type = Pack<WordOf<T>, kBytes>;
};

// What a comparison gives: of every element all bits or none.
template <class T, int kBytes>
using Mask = Pack<std::make_signed_t<WordOf<T>>, kBytes>;

template <class To, class T, int kBytes>
FUSEDSTEP_HD To bit_cast(const Pack<T, kBytes>& x) {
  using Vector = typename To::Vector;
  return {Vector(x.a), Vector(x.b)};
}

// Pack and pack, pack and number, number and pack.
#define FUSEDSTEP_OPERATOR(Result, op)                                                             \
  template <class T, int kBytes>                                                                   \
  FUSEDSTEP_HD Result<T, kBytes> operator op(const Pack<T, kBytes>& x, const Pack<T, kBytes>& y) { \
    using Vector = typename Result<T, kBytes>::Vector;                                             \
    return {Vector(x.a op y.a), Vector(x.b op y.b)};                                               \
  }                                                                                                \
  template <class T, int kBytes>                                                                   \
  FUSEDSTEP_HD Result<T, kBytes> operator op(const Pack<T, kBytes>& x,                             \
                                             ElementOf<Pack<T, kBytes>> y) {                       \
    return x op Pack<T, kBytes>(y);                                                                \
  }                                                                                                \
  template <class T, int kBytes>                                                                   \
  FUSEDSTEP_HD Result<T, kBytes> operator op(ElementOf<Pack<T, kBytes>> x,                         \
                                             const Pack<T, kBytes>& y) {                           \
    return Pack<T, kBytes>(x) op y;                                                                \
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
FUSEDSTEP_OPERATOR(Mask, >)
FUSEDSTEP_OPERATOR(Mask, ==)
FUSEDSTEP_OPERATOR(Mask, !=)
#undef FUSEDSTEP_OPERATOR

template <class T, int kBytes>
FUSEDSTEP_HD Pack<T, kBytes> operator-(const Pack<T, kBytes>& x) {
  return {-x.a, -x.b};
}

template <class T, int kBytes>
FUSEDSTEP_HD Pack<T, kBytes> select(const Mask<T, kBytes>& condition, const Pack<T, kBytes>& yes,
                                    const Pack<T, kBytes>& no) {
  return {condition.a ? yes.a : no.a, condition.b ? yes.b : no.b};
}

// Vector by vector: a choice of whole packs goes through memory.
template <class T, int kBytes>
FUSEDSTEP_HD Pack<T, kBytes> select(bool condition, const Pack<T, kBytes>& yes,
                                    const Pack<T, kBytes>& no) {
  return {condition ? yes.a : no.a, condition ? yes.b : no.b};
}

template <class T, int kBytes>
FUSEDSTEP_HD Pack<T, kBytes> div(const Pack<T, kBytes>& x, const Pack<T, kBytes>& y) {
  return x / y;
}

#if defined(__AVX512F__)
FUSEDSTEP_HD __m512 sqrt(__m512 x) { return _mm512_sqrt_ps(x); }
FUSEDSTEP_HD __m512d sqrt(__m512d x) { return _mm512_sqrt_pd(x); }
#endif
#if defined(__AVX2__)
FUSEDSTEP_HD __m256 sqrt(__m256 x) { return _mm256_sqrt_ps(x); }
FUSEDSTEP_HD __m256d sqrt(__m256d x) { return _mm256_sqrt_pd(x); }
#endif
#if defined(__SSE2__)
FUSEDSTEP_HD __m128 sqrt(__m128 x) { return _mm_sqrt_ps(x); }
FUSEDSTEP_HD __m128d sqrt(__m128d x) { return _mm_sqrt_pd(x); }
#elif defined(__aarch64__)
template <class Vector>
FUSEDSTEP_HD Vector sqrt(Vector x) {
  if constexpr (sizeof x[0] == sizeof(float))
    return Vector(vsqrtq_f32(float32x4_t(x)));
  else
    return Vector(vsqrtq_f64(float64x2_t(x)));
}
#else
template <class Vector>
FUSEDSTEP_HD Vector sqrt(Vector x) {
  for (int i = 0; i < int(sizeof(Vector) / sizeof(x[0])); ++i) x[i] = sqrt(x[i]);
  return x;
}
#endif

template <class T, int kBytes>
FUSEDSTEP_HD Pack<T, kBytes> sqrt(const Pack<T, kBytes>& x) {
  return {sqrt(x.a), sqrt(x.b)};
}

// The first n elements of a vector, n being any number: the others are loaded as 0 and not stored.
#if defined(__AVX512VL__)
FUSEDSTEP_HD __mmask8 first(int n) { return n < 8 ? (1u << (n > 0 ? n : 0)) - 1u : 0xFFu; }

template <class Vector>
FUSEDSTEP_HD Vector load_first(const float* memory, int n) {
  return _mm256_maskz_loadu_ps(first(n), memory);
}
template <class Vector>
FUSEDSTEP_HD Vector load_first(const double* memory, int n) {
  return _mm256_maskz_loadu_pd(first(n), memory);
}
FUSEDSTEP_HD void store_first(__m256 x, float* memory, int n) {
  _mm256_mask_storeu_ps(memory, first(n), x);
}
FUSEDSTEP_HD void store_first(__m256d x, double* memory, int n) {
  _mm256_mask_storeu_pd(memory, first(n), x);
}
#else
template <class Vector, class T>
FUSEDSTEP_HD Vector load_first(const T* memory, int n) {
  Vector x = {};
  if (n >= int(sizeof x / sizeof(T)))
    std::memcpy(&x, memory, sizeof x);
  else if (n > 0)
    std::memcpy(&x, memory, n * sizeof(T));
  return x;
}
template <class Vector, class T>
FUSEDSTEP_HD void store_first(Vector x, T* memory, int n) {
  if (n >= int(sizeof x / sizeof(T)))
    std::memcpy(memory, &x, sizeof x);
  else if (n > 0)
    std::memcpy(memory, &x, n * sizeof(T));
}
#endif

// Memory is not aligned. Whole packs are moved vector by vector, so that they stay in registers.
template <bool kWhole, class T, int kBytes>
FUSEDSTEP_HD void load(Pack<T, kBytes>& x, const T* memory, int n) {
  using Vector = typename Pack<T, kBytes>::Vector;
  constexpr int size = Pack<T, kBytes>::kVector;
  typedef Vector Unaligned __attribute__((aligned(alignof(T))));
  if constexpr (kWhole) {
    const Unaligned* vector = reinterpret_cast<const Unaligned*>(memory);
    x = {vector[0], vector[1]};
  } else {
    x = {load_first<Vector>(memory, n), load_first<Vector>(memory + size, n - size)};
  }
}

template <bool kWhole, class T, int kBytes>
FUSEDSTEP_HD void store(const Pack<T, kBytes>& x, T* memory, int n) {
  using Vector = typename Pack<T, kBytes>::Vector;
  constexpr int size = Pack<T, kBytes>::kVector;
  typedef Vector Unaligned __attribute__((aligned(alignof(T))));
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
