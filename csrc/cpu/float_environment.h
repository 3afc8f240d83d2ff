// N11: a worker computes with rounding to nearest and without flushing, and restores what it found.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

class FloatEnvironment {
 public:
  FloatEnvironment() : found_(get()) { set(kDefault); }
  ~FloatEnvironment() { set(found_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr std::uint64_t kDefault = 0x1F80;  // MXCSR: all masked, nearest, no FTZ, no DAZ
  static std::uint64_t get() { return _mm_getcsr(); }
  static void set(std::uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t kDefault = 0;
  static std::uint64_t get() {
    std::uint64_t value;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(std::uint64_t value) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"(value) : "memory");
  }
#else
  static constexpr std::uint64_t kDefault = 0;
  static std::uint64_t get() { return 0; }
  static void set(std::uint64_t) {}
#endif
  std::uint64_t found_;
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
