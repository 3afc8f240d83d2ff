// N11: a worker computes with rounding to nearest and without flushing, and restores what it found.
#pragma once

#include <cfenv>

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&found_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&found_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t found_;
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
