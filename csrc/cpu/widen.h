// 16-bit memory to float and back, a block at a time (N1).
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "core/numerics.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

template <class Memory>
void widen_block(float* to, const Memory* from, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) to[i] = widen<float>(from[i]);
}

template <class Memory>
void narrow_block(const float* from, Memory* to, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) narrow(from[i], to[i]);
}

#if defined(__F16C__)
// The instructions do what widen and narrow do.
inline void widen_block(float* to, const f16* from, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(eight));
  }
  for (; i < n; ++i) to[i] = widen<float>(from[i]);
}

inline void narrow_block(const float* from, f16* to, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), eight);
  }
  for (; i < n; ++i) narrow(from[i], to[i]);
}
#endif

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
