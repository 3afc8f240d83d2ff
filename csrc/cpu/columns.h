// Columns of memory to packs and back: opmath as it is, 16 bits widened and narrowed (N1).
#pragma once

#include "core/launch.h"
#include "cpu/pack.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

struct Column {
  std::uint64_t address;
  DType dtype;
};

template <int kBytes>
using Floats = Pack<float, kBytes>;

template <int kBytes>
FUSEDSTEP_HD void widen_pack(Floats<kBytes>& x, const bf16* memory) {
  using Vector = typename Floats<kBytes>::Vector;
  using Words = typename WordOf<Floats<kBytes>>::Vector;
  typename Pack<std::uint16_t, kBytes / 2>::Vector a, b;
  std::memcpy(&a, memory, sizeof a);
  std::memcpy(&b, memory + Floats<kBytes>::kVector, sizeof b);
  x = {Vector(__builtin_convertvector(a, Words) << 16u),
       Vector(__builtin_convertvector(b, Words) << 16u)};
}

template <int kBytes>
FUSEDSTEP_HD void narrow_pack(const Floats<kBytes>& x, bf16* memory) {
  using Halves = typename Pack<std::uint16_t, kBytes / 2>::Vector;
  const auto bits = bf16_bits(bit_cast<WordOf<Floats<kBytes>>>(x));
  const Halves a = __builtin_convertvector(bits.a, Halves);
  const Halves b = __builtin_convertvector(bits.b, Halves);
  std::memcpy(memory, &a, sizeof a);
  std::memcpy(memory + Floats<kBytes>::kVector, &b, sizeof b);
}

// The instructions for float16 do what widen and narrow do.
#if defined(__F16C__)
FUSEDSTEP_HD void widen_vector(__m128& x, const f16* memory) {
  x = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(memory)));
}
FUSEDSTEP_HD void widen_vector(__m256& x, const f16* memory) {
  x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(memory)));
}
FUSEDSTEP_HD void narrow_vector(__m128 x, f16* memory) {
  const __m128i bits = _mm_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(memory), bits);
}
FUSEDSTEP_HD void narrow_vector(__m256 x, f16* memory) {
  const __m128i bits = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(memory), bits);
}
#elif defined(__aarch64__)
template <class Vector>
FUSEDSTEP_HD void widen_vector(Vector& x, const f16* memory) {
  x = Vector(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&memory->bits))));
}
template <class Vector>
FUSEDSTEP_HD void narrow_vector(const Vector& x, f16* memory) {
  vst1_u16(&memory->bits, vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(x))));
}
#else
template <class Vector>
__attribute__((noinline)) void widen_vector(Vector& x, const f16* memory) {
  x = Vector{};
  for (int i = 0; i < int(sizeof x / sizeof(float)); ++i) x[i] = widen<float>(memory[i]);
}
template <class Vector>
__attribute__((noinline)) void narrow_vector(const Vector& x, f16* memory) {
  for (int i = 0; i < int(sizeof x / sizeof(float)); ++i) narrow(x[i], memory[i]);
}
#endif
#if defined(__AVX512F__)
FUSEDSTEP_HD void widen_vector(__m512& x, const f16* memory) {
  x = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(memory)));
}
FUSEDSTEP_HD void narrow_vector(__m512 x, f16* memory) {
  const __m256i bits = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(memory), bits);
}
#endif

template <int kBytes>
FUSEDSTEP_HD void widen_pack(Floats<kBytes>& x, const f16* memory) {
  widen_vector(x.a, memory);
  widen_vector(x.b, memory + Floats<kBytes>::kVector);
}

template <int kBytes>
FUSEDSTEP_HD void narrow_pack(const Floats<kBytes>& x, f16* memory) {
  narrow_vector(x.a, memory);
  narrow_vector(x.b, memory + Floats<kBytes>::kVector);
}

template <bool kWhole, class Memory, int kBytes>
FUSEDSTEP_HD void load_narrow(Floats<kBytes>& x, const Memory* memory, int n) {
  constexpr int size = Floats<kBytes>::kSize;
  if constexpr (kWhole) {
    widen_pack(x, memory);
  } else {
    Memory some[size] = {};
    std::memcpy(some, memory, (n < size ? n : size) * sizeof(Memory));
    widen_pack(x, some);
  }
}

template <bool kWhole, class Memory, int kBytes>
FUSEDSTEP_HD void store_narrow(const Floats<kBytes>& x, Memory* memory, int n) {
  constexpr int size = Floats<kBytes>::kSize;
  if constexpr (kWhole) {
    narrow_pack(x, memory);
  } else {
    Memory some[size];
    narrow_pack(x, some);
    std::memcpy(memory, some, (n < size ? n : size) * sizeof(Memory));
  }
}

// A pack from a column's element i on, or as much of it as the n elements that are left.
template <bool kWhole, class T, int kBytes>
FUSEDSTEP_HD void load(Pack<T, kBytes>& x, const Column& column, int i, int n) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (column.dtype == DType::bf16)
      return load_narrow<kWhole>(x, pointer<const bf16>(column.address) + i, n);
    if (column.dtype == DType::f16)
      return load_narrow<kWhole>(x, pointer<const f16>(column.address) + i, n);
  }
  load<kWhole>(x, pointer<const T>(column.address) + i, n);
}

template <bool kWhole, class T, int kBytes>
FUSEDSTEP_HD void store(const Pack<T, kBytes>& x, const Column& column, int i, int n) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (column.dtype == DType::bf16)
      return store_narrow<kWhole>(x, pointer<bf16>(column.address) + i, n);
    if (column.dtype == DType::f16)
      return store_narrow<kWhole>(x, pointer<f16>(column.address) + i, n);
  }
  store<kWhole>(x, pointer<T>(column.address) + i, n);
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
