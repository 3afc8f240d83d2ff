// A rule's columns: where a tensor's memory is, and a unit of each on its way to registers and
// back.
#pragma once

#include "core/rule.h"
#include "unit.cuh"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

// State 0 is there even in a rule that has none, where nothing touches it.
template <class Rule>
constexpr int kColumns = Rule::kStates > 0 ? Rule::kStates : 1;

// Whether a rule reads a gradient beside other columns.
template <class Rule>
constexpr bool kGradBeside = Rule::kReadsGrad && (Rule::kReadsParam || Rule::kStates > 0);

// One tensor's memory.
template <class Rule>
struct Columns {
  std::uint64_t grad, param, source, state[kColumns<Rule>];  // source: the master or the parameter
  bool aligned, grad_aligned;  // to 16 bytes; aligned: all columns but a gradient beside them

  __device__ __forceinline__ Columns(const Launch& launch, std::int64_t tensor, std::uint64_t grad)
      : grad(Rule::kReadsGrad ? grad : 0),
        param(address_of(launch, kParam, tensor)),
        source(address_of(launch, launch.master ? kMaster : kParam, tensor)) {
    std::uint64_t bits = kGradBeside<Rule> ? 0 : this->grad;
    if constexpr (Rule::kReadsParam || Rule::kMovesParam) bits |= param | source;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k)
      bits |= state[k] = address_of(launch, kState + k, tensor);
    aligned = bits % 16 == 0;
    grad_aligned = this->grad % 16 == 0;
  }
};

// Parameters are read from their masters where there are any.
__device__ __forceinline__ DType source_dtype(const Launch& launch) {
  return launch.master ? DType::f32 : launch.param_dtype;
}

// A unit of every column in registers: as loaded, then in opmath.
template <class Rule>
struct Loaded {
  Bits grad, param, state[kColumns<Rule>];
};

template <class Rule>
struct Values {
  using T = typename Rule::opmath;
  T p[kUnit<T>], state[kColumns<Rule>][kUnit<T>], out[kMaxSums][kUnit<T>];
};

template <bool kWhole, bool kWholeGrad = kWhole, class Rule>
__device__ __forceinline__ void load_unit(const Launch& launch, const Columns<Rule>& columns,
                                          bool faded, std::int64_t first, int n,
                                          Loaded<Rule>& loaded) {
  using T = typename Rule::opmath;
  loaded = {};
  if constexpr (Rule::kReadsGrad)
    loaded.grad = load<kWholeGrad, T>(launch.grad_dtype, columns.grad, first, n);
  if constexpr (Rule::kReadsParam)
    loaded.param = load<kWhole, T>(source_dtype(launch), columns.source, first, n);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k)
    if (k != Rule::kFading || !faded)
      loaded.state[k] = load<kWhole, T>(state_dtype<T>(launch, k), columns.state[k], first, n);
}

template <bool kWhole, class Rule>
__device__ __forceinline__ void store_unit(const Launch& launch, const Columns<Rule>& columns,
                                           bool faded, std::int64_t first, int n,
                                           const Values<Rule>& values) {
  using T = typename Rule::opmath;
  if constexpr (Rule::kMovesParam) {
    if (launch.master) store<kWhole, T>(DType::f32, values.p, columns.source, first, n);
    store<kWhole, T>(launch.param_dtype, values.p, columns.param, first, n);
  }
#pragma unroll
  for (int k = 0; k < kMoved<Rule>; ++k)
    if (k != Rule::kFading || !faded)
      store<kWhole, T>(state_dtype<T>(launch, k), values.state[k], columns.state[k], first, n);
}

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
