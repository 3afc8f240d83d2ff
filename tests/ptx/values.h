// What instructions compute. Registers hold bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace ptx {

using f16 = _Float16;
using f32 = float;
using f64 = double;

template <class T>
constexpr bool kIsFloat = std::is_same_v<T, f16> || std::is_floating_point_v<T>;

// The lowest bits of a register as a type.
template <class T, class R>
T as(R bits) {
  if constexpr (kIsFloat<T>)
    return std::bit_cast<T>(bits);
  else
    return static_cast<T>(bits);
}

// A value goes into a register, and is extended if that is wider.
template <class R, class T>
void put(R& reg, T value) {
  if constexpr (kIsFloat<T>)
    reg = std::bit_cast<R>(value);
  else
    reg = static_cast<R>(value);
}

template <class T>
T shift_left(T x, std::uint32_t by) {
  return by < 8 * sizeof(T) ? T(x << by) : T(0);
}

template <class T>
T shift_right(T x, std::uint32_t by) {
  const std::uint32_t most = 8 * sizeof(T) - 1;
  if (by > most) return std::is_signed_v<T> ? T(x >> most) : T(0);
  return T(x >> by);
}

// A pair of float32, each half computed with the other's.
template <class Compute>
std::uint64_t pairs(std::uint64_t a, std::uint64_t b, Compute compute) {
  const auto half = [=](int shift) {
    const auto x = std::bit_cast<f32>(std::uint32_t(a >> shift));
    const auto y = std::bit_cast<f32>(std::uint32_t(b >> shift));
    return std::uint64_t(std::bit_cast<std::uint32_t>(f32(compute(x, y)))) << shift;
  };
  return half(32) | half(0);
}

// Four bytes of two registers', chosen by the hexadecimal digits of `which`.
inline std::uint32_t permute(std::uint32_t low, std::uint32_t high, std::uint32_t which) {
  const std::uint64_t bytes = std::uint64_t(high) << 32 | low;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t digit = which >> 4 * i & 15;
    std::uint32_t byte = std::uint32_t(bytes >> 8 * (digit & 7)) & 255;
    if (digit > 7) byte = byte > 127 ? 255 : 0;  // its sign only
    result |= byte << 8 * i;
  }
  return result;
}

// Of an integer, `count` bits from bit `at`; the last is the sign of a signed one.
template <class T>
T extract(T x, std::uint32_t at, std::uint32_t count) {
  using U = std::make_unsigned_t<T>;
  at &= 255, count &= 255;
  if (count == 0) return 0;
  const U mask = U(shift_left(U(1), count) - 1);
  const U field = U(shift_right(U(x), at) & mask);
  const std::uint32_t last = std::min<std::uint32_t>(at + count, 8 * sizeof(T)) - 1;
  const bool negative = std::is_signed_v<T> && (shift_right(U(x), last) & 1) != 0;
  return negative ? T(field | ~U(shift_left(U(1), last - std::min(at, last)) - 1)) : T(field);
}

// The same bits of another integer, where they are those of `x`.
template <class T>
T insert(T x, T into, std::uint32_t at, std::uint32_t count) {
  const T mask = shift_left(T(shift_left(T(1), count & 255) - 1), at & 255);
  return T((shift_left(x, at & 255) & mask) | (into & ~mask));
}

}  // namespace ptx
