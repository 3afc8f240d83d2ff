// N11: a worker computes with rounding to nearest and without flushing, and restores what it found.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#else
#include <cfenv>
#endif

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

class FloatEnvironment {
 public:
  FloatEnvironment() : found_(get()) { set_default(); }
  ~FloatEnvironment() { set(found_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using State = unsigned;  // MXCSR; <cfenv> takes longer: it serves x87 too
  static State get() { return _mm_getcsr(); }
  static void set(State state) { _mm_setcsr(state); }
  static void set_default() { set(0x1F80); }  // all masked, to nearest, no FTZ, no DAZ
#elif defined(__aarch64__)
  using State = std::uint64_t;
  static State get() {
    State state;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void set(State state) { __asm__ __volatile__("msr fpcr, %0" : : "r"(state) : "memory"); }
  static void set_default() { set(0); }
#else
  using State = std::fenv_t;
  static State get() {
    State state;
    std::fegetenv(&state);
    return state;
  }
  static void set(const State& state) { std::fesetenv(&state); }
  static void set_default() { std::fesetenv(FE_DFL_ENV); }
#endif
  State found_;
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
