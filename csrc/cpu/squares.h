// What a rule emits, added to the sums of its chunk (N7).
#pragma once

#include "core/reduce.h"
#include "cpu/pack.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

// lanes[i] += x[i]^2 over a vector. The square of a float32 is exact in float64, so a fused
// multiply-add rounds as the two separate operations do (N3).
#if defined(__AVX512F__)
FUSEDSTEP_HD void add_square(__m512d x, double* lanes) {
  _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), _mm512_mul_pd(x, x)));
}
FUSEDSTEP_HD void add_exact_square(__m256 x, double* lanes) {
  const __m512d wide = _mm512_cvtps_pd(x);
  _mm512_storeu_pd(lanes, _mm512_fmadd_pd(wide, wide, _mm512_loadu_pd(lanes)));
}
FUSEDSTEP_HD void add_square(__m512 x, double* lanes) {
  add_exact_square(_mm512_castps512_ps256(x), lanes);
  add_exact_square(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)), lanes + 8);
}
#elif defined(__AVX2__) && defined(__FMA__)
FUSEDSTEP_HD void add_square(__m256d x, double* lanes) {
  _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_loadu_pd(lanes), _mm256_mul_pd(x, x)));
}
FUSEDSTEP_HD void add_exact_square(__m128 x, double* lanes) {
  const __m256d wide = _mm256_cvtps_pd(x);
  _mm256_storeu_pd(lanes, _mm256_fmadd_pd(wide, wide, _mm256_loadu_pd(lanes)));
}
FUSEDSTEP_HD void add_square(__m256 x, double* lanes) {
  add_exact_square(_mm256_castps256_ps128(x), lanes);
  add_exact_square(_mm256_extractf128_ps(x, 1), lanes + 4);
}
#else
template <class Vector>
FUSEDSTEP_HD void add_square(const Vector& x, double* lanes) {
  for (int i = 0; i < int(sizeof x / sizeof x[0]); ++i) lanes[i] = lanes[i] + square(x[i]);
}
#endif

// Ones and zeros, whose sum is exact in any order: it needs few lanes, and no float64.
template <class Rule>
constexpr bool is_count(int sum) {
  return Rule::kCounted && sum == Rule::kSums - 1;
}

// Adds what a pack emits for one sum: to lanes, or to counted.
template <class V, bool kWhole, class Rule, int kSum>
FUSEDSTEP_HD void emit(const V& x, double* lanes, typename Rule::opmath* counted, int n) {
  if constexpr (kWhole && is_count<Rule>(kSum)) {
    V sum;
    load<true>(sum, counted, n);
    store<true>(sum + x, counted, n);
  } else if constexpr (kWhole) {
    add_square(x.a, lanes);
    add_square(x.b, lanes + V::kVector);
  } else {
    typename Rule::opmath values[V::kSize];
    store<true>(x, values, n);
    const int some = n < V::kSize ? n : V::kSize;
    if constexpr (is_count<Rule>(kSum)) {
#pragma omp simd
      for (int i = 0; i < some; ++i) counted[i] = counted[i] + values[i];
    } else {
#pragma omp simd
      for (int i = 0; i < some; ++i) lanes[i] = lanes[i] + square(values[i]);
    }
  }
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
