// The one summation tree (N7): 1,024 lanes, element i in lane i mod 1024, each lane in order; then
// lanes fold by halving. Elements of a chunk are squared; chunk sums of a segment go through the
// same tree as they are.
#pragma once

#include <cstdint>

#include "core/launch.h"

namespace fusedstep {

constexpr int kLanes = 1024;

inline namespace FUSEDSTEP_LEVEL {

// Exact for float32.
template <class T>
FUSEDSTEP_HD double square(T x) {
  return double(x) * double(x);
}

// The chunk's place in `partial`; columns are `slots` apart.
FUSEDSTEP_HD double* partial_of(const Launch& launch, const Chunk& chunk) {
  return launch.partial + launch.slot[chunk.tensor] + chunk.index;
}

// Lanes that a sequence of n terms reaches, as a power of two. The others hold +0, which changes no
// sum of squares: they need not be folded.
FUSEDSTEP_HD int lanes_for(std::int64_t n) {
  int lanes = 1;
  while (lanes < kLanes && lanes < n) lanes *= 2;
  return lanes;
}

// Folds values[0, n) by halving until `left` of them remain; n and left are powers of two.
FUSEDSTEP_HD void fold(double* values, int n, int left) {
  for (int half = n / 2; half >= left; half /= 2)
    for (int i = 0; i < half; ++i) values[i] = values[i] + values[i + half];
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
