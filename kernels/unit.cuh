// Columns between memory and registers: 16 bytes of opmath, or as many 16-bit elements, at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "core/launch.h"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

// Elements of a unit: 4 of float32 opmath, 2 of float64.
template <class T>
constexpr int kUnit = 16 / int(sizeof(T));

// A unit in registers, its bits as they lie in memory; 16-bit elements fill the first half.
// Widening is a step of its own, so that all columns' loads are issued before one is waited for.
struct Bits {
  std::uint32_t word[4];
};

// What moves in one instruction: n words, for a unit of T as it lies in memory kWords.
template <int n>
struct alignas(4 * n) Access {
  std::uint32_t word[n];
};

template <class T, class Memory>
constexpr int kWords = int(sizeof(Memory)) * kUnit<T> / 4;

// The tables hold plain addresses, all of them in global memory. (Adding the offset to the pointer
// instead sends nvcc 13.0 into an endless loop.)
template <class Memory>
__device__ __forceinline__ Memory* global(std::uint64_t address, std::int64_t offset) {
  return static_cast<Memory*>(
      __cvta_global_to_generic(address + std::uint64_t(offset) * sizeof(Memory)));
}

template <int n>
__device__ __forceinline__ void load_whole(Bits& bits, const void* from) {
  const Access<n> access = *static_cast<const Access<n>*>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) bits.word[i] = access.word[i];
}

// By inline PTX: where registers are short the compiler splits an ordinary 16-byte store.
template <int n>
__device__ __forceinline__ void store_whole(const Bits& bits, void* to) {
  static_assert(n == 4 || n == 2);
  const std::uint32_t* x = bits.word;
#ifdef __CUDACC__
  if constexpr (n == 4)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
  else
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(x[0]),
                 "r"(x[1])
                 : "memory");
#else
  std::memcpy(to, x, 4 * n);
#endif
}

// Element i of a unit, of a type that lies in memory as it is.
template <class Memory>
__device__ __forceinline__ Memory get(const Bits& bits, int i) {
  if constexpr (sizeof(Memory) == 8)
    return bit_cast<Memory>(bits.word[2 * i] | std::uint64_t(bits.word[2 * i + 1]) << 32);
  else if constexpr (sizeof(Memory) == 4)
    return bit_cast<Memory>(bits.word[i]);
  else
    return bit_cast<Memory>(std::uint16_t(bits.word[i / 2] >> (i % 2 * 16)));
}

// Into a unit of zeros.
template <class Memory>
__device__ __forceinline__ void put(Bits& bits, int i, Memory x) {
  if constexpr (sizeof(Memory) == 8) {
    bits.word[2 * i] = std::uint32_t(bit_cast<std::uint64_t>(x));
    bits.word[2 * i + 1] = std::uint32_t(bit_cast<std::uint64_t>(x) >> 32);
  } else if constexpr (sizeof(Memory) == 4) {
    bits.word[i] = bit_cast<std::uint32_t>(x);
  } else {
    bits.word[i / 2] |= std::uint32_t(bit_cast<std::uint16_t>(x)) << (i % 2 * 16);
  }
}

// The n elements of the column at `address` from `first` on. kWhole: n == kUnit, and 16 bytes of
// opmath are aligned.
template <bool kWhole, class T, class Memory>
__device__ __forceinline__ Bits load_as(std::uint64_t address, std::int64_t first, int n) {
  const Memory* memory = global<const Memory>(address, first);
  Bits bits = {};
  if constexpr (kWhole) {
    load_whole<kWords<T, Memory>>(bits, memory);
  } else {
#pragma unroll
    for (int i = 0; i < kUnit<T>; ++i)
      if (i < n) put(bits, i, memory[i]);
  }
  return bits;
}

// float64 opmath serves float64 memory only: nothing to choose.
template <bool kWhole, class T>
__device__ __forceinline__ Bits load(DType dtype, std::uint64_t address, std::int64_t first,
                                     int n) {
  if constexpr (sizeof(T) == sizeof(float))
    if (dtype != DType::f32) return load_as<kWhole, T, std::uint16_t>(address, first, n);
  return load_as<kWhole, T, T>(address, first, n);
}

template <class T, class Memory>
__device__ __forceinline__ void widen_as(const Bits& bits, T* x) {
#pragma unroll
  for (int i = 0; i < kUnit<T>; ++i) x[i] = widen<T>(get<Memory>(bits, i));
}

template <class T>
__device__ __forceinline__ void widen_unit(DType dtype, const Bits& bits, T* x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bf16) return widen_as<T, bf16>(bits, x);
    if (dtype == DType::f16) return widen_as<T, f16>(bits, x);
  }
  widen_as<T, T>(bits, x);
}

template <bool kWhole, class T, class Memory>
__device__ __forceinline__ void store_as(const T* x, std::uint64_t address, std::int64_t first,
                                         int n) {
  Memory* memory = global<Memory>(address, first);
  Bits bits = {};
#pragma unroll
  for (int i = 0; i < kUnit<T>; ++i) {
    Memory narrowed;
    narrow(x[i], narrowed);
    if constexpr (kWhole)
      put(bits, i, narrowed);
    else if (i < n)
      memory[i] = narrowed;
  }
  if constexpr (kWhole) store_whole<kWords<T, Memory>>(bits, memory);
}

template <bool kWhole, class T>
__device__ __forceinline__ void store(DType dtype, const T* x, std::uint64_t address,
                                      std::int64_t first, int n) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bf16) return store_as<kWhole, T, bf16>(x, address, first, n);
    if (dtype == DType::f16) return store_as<kWhole, T, f16>(x, address, first, n);
  }
  store_as<kWhole, T, T>(x, address, first, n);
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
