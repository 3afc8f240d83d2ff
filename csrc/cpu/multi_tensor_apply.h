// The CPU engine: chunks to threads, blocks of a chunk through the rule.
//
// A block whose memory is already opmath is updated in place. 16-bit memory is widened into a
// scratch block that stays in the first-level cache and narrowed back, so that a rule is compiled
// for float and double only.
#pragma once

#include <utility>

#include "core/rule.h"
#include "cpu/float_environment.h"
#include "cpu/registry.h"

#define FUSEDSTEP_STRING_(x) #x
#define FUSEDSTEP_STRING(x) FUSEDSTEP_STRING_(x)

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr int kBlock = 1024;                     // elements between widening and narrowing
constexpr std::int64_t kSerialElements = 32768;  // below this, waking threads costs more

template <class T, class Memory>
void widen_block(T* to, const void* from, std::int64_t offset, int n) {
  const Memory* memory = static_cast<const Memory*>(from) + offset;
#pragma omp simd
  for (int i = 0; i < n; ++i) to[i] = widen<T>(memory[i]);
}

template <class T, class Memory>
void narrow_block(const T* from, void* to, std::int64_t offset, int n) {
  Memory* memory = static_cast<Memory*>(to) + offset;
#pragma omp simd
  for (int i = 0; i < n; ++i) narrow(from[i], memory[i]);
}

// One column of a block: where it is opmath already, the memory itself, else `scratch`, filled.
template <class T>
T* open_block(DType dtype, std::uint64_t address, std::int64_t offset, int n, T* scratch) {
  void* memory = pointer<void>(address);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bf16) return widen_block<T, bf16>(scratch, memory, offset, n), scratch;
    if (dtype == DType::f16) return widen_block<T, f16>(scratch, memory, offset, n), scratch;
  }
  return static_cast<T*>(memory) + offset;
}

template <class T>
void close_block(DType dtype, const T* block, std::uint64_t address, std::int64_t offset, int n) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bf16) narrow_block<T, bf16>(block, pointer<void>(address), offset, n);
    if (dtype == DType::f16) narrow_block<T, f16>(block, pointer<void>(address), offset, n);
  }
}

// A function of its own: OpenMP would give an array declared inside a simd loop a copy per lane.
template <class Rule, std::size_t... K>
FUSEDSTEP_HD void update_element(const typename Rule::Scalars& scalars, int i,
                                 const typename Rule::opmath* g, typename Rule::opmath* p,
                                 typename Rule::opmath* const* state, std::index_sequence<K...>) {
  typename Rule::opmath registers[] = {state[K][i]...};
  typename Rule::opmath parameter = p[i];
  Rule::update(scalars, g[i], parameter, registers);
  p[i] = parameter;
  ((state[K][i] = registers[K]), ...);
}

template <class Rule>
void update_block(const typename Rule::Scalars& scalars, int n, const typename Rule::opmath* g,
                  typename Rule::opmath* p, typename Rule::opmath* const* columns) {
  using T = typename Rule::opmath;
  T* state[Rule::kStates];
  for (int k = 0; k < Rule::kStates; ++k) state[k] = columns[k];
#pragma omp simd
  for (int i = 0; i < n; ++i)
    update_element<Rule>(scalars, i, g, p, state, std::make_index_sequence<Rule::kStates>());
}

template <class T>
struct Scratch {
  alignas(64) T g[kBlock], p[kBlock], exp_avg[kBlock], zeros[kBlock];
};

template <class Rule>
void apply_block(const Launch& launch, const Prologue<Rule>& now, std::int64_t tensor,
                 std::int64_t offset, int n, Scratch<typename Rule::opmath>& scratch) {
  using T = typename Rule::opmath;
  const std::uint64_t grad = launch.grad[tensor];
  const std::uint64_t param = address_of(launch, launch.master ? kMaster : kParam, tensor);
  const std::uint64_t exp_avg = address_of(launch, kState, tensor);
  const DType param_dtype = launch.master ? DType::f32 : launch.param_dtype;

  const T* g = open_block<T>(launch.grad_dtype, grad, offset, n, scratch.g);
  // Dividing and multiplying by one changes no bit, so it is left out.
  if (launch.grad_scale != nullptr || now.coefficient != T(1)) {
    const T scale = launch.grad_scale != nullptr ? T(*launch.grad_scale) : T(1);
    const T* unscaled = g;
#pragma omp simd
    for (int i = 0; i < n; ++i) scratch.g[i] = div(unscaled[i], scale) * now.coefficient;
    g = scratch.g;
  }
  T* p = open_block<T>(param_dtype, param, offset, n, scratch.p);
  T* state[Rule::kStates];
  state[0] = open_block<T>(launch.exp_avg_dtype, exp_avg, offset, n, scratch.exp_avg);
  for (int k = 1; k < Rule::kStates; ++k)
    state[k] = pointer<T>(address_of(launch, kState + k, tensor)) + offset;
  if (Rule::kFading > 0 && now.faded) {
    for (int i = 0; i < n; ++i) scratch.zeros[i] = T(0);
    state[Rule::kFading > 0 ? Rule::kFading : 0] = scratch.zeros;
  }

  update_block<Rule>(now.scalars, n, g, p, state);

  close_block(launch.exp_avg_dtype, state[0], exp_avg, offset, n);
  close_block(launch.param_dtype, p, address_of(launch, kParam, tensor), offset, n);
}

// The prologue of the tensor asked for last: neighbours mostly share row, count and carried
// scalars, and scalars cost more than the elements of a small tensor.
template <class Rule>
class LastPrologue {
 public:
  const Prologue<Rule>& of(const Launch& launch, std::int64_t tensor) {
    const std::int64_t row = launch.row[tensor];
    const auto count = *pointer<const std::int64_t>(address_of(launch, kStep, tensor));
    bool same = row == row_ && count == count_;
    for (int j = 0; j < Rule::kCarried; ++j) {
      const auto carried =
          *pointer<const double>(address_of(launch, kState + Rule::kStates + j, tensor));
      same = same && carried == carried_[j];
      carried_[j] = carried;
    }
    if (!same) now_ = prologue<Rule>(launch, tensor);
    row_ = row;
    count_ = count;
    return now_;
  }

 private:
  Prologue<Rule> now_{};
  std::int64_t row_ = -1, count_ = -1;
  double carried_[kMaxCarried] = {};
};

template <class Rule>
void apply(const Launch& launch, int threads) {
  using T = typename Rule::opmath;
  static_assert(check_rule<Rule>());
  if (skipped(launch)) return;
#pragma omp parallel num_threads(threads) if (launch.elements > kSerialElements)
  {
    const FloatEnvironment environment;
    alignas(64) Scratch<T> scratch;
    LastPrologue<Rule> last;
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t i = 0; i < launch.chunks; ++i) {
      const Chunk chunk = launch.chunk[i];
      if (launch.grad[chunk.tensor] == 0) continue;
      const Prologue<Rule>& now = last.of(launch, chunk.tensor);
      const std::int64_t begin = chunk.index * kChunk;
      const std::int64_t numel = launch.numel[chunk.tensor];
      const std::int64_t end = begin + kChunk < numel ? begin + kChunk : numel;
      for (std::int64_t offset = begin; offset < end; offset += kBlock) {
        const std::int64_t left = end - offset;
        apply_block<Rule>(launch, now, chunk.tensor, offset, int(left < kBlock ? left : kBlock),
                          scratch);
      }
    }
  }
  const FloatEnvironment environment;
  LastPrologue<Rule> last;
  for (std::int64_t tensor = 0; tensor < launch.tensors; ++tensor)
    if (launch.grad[tensor] != 0) advance(launch, tensor, last.of(launch, tensor));
}

template <template <class, unsigned> class Rule, class T, unsigned kVariant>
void register_variant() {
  using R = Rule<T, kVariant>;
  static CpuKernel kernel{FUSEDSTEP_STRING(FUSEDSTEP_LEVEL),
                          R::kName,
                          kVariant,
                          sizeof(T) == sizeof(double),
                          R::kHypers,
                          R::kStates,
                          R::kCarried,
                          &apply<R>,
                          nullptr};
  register_cpu_kernel(&kernel);
}

// Every variant of a rule in both opmaths.
template <template <class, unsigned> class Rule>
struct RegisterRule {
  RegisterRule() { all(std::make_integer_sequence<unsigned, Rule<float, 0>::kVariants>()); }
  template <unsigned... kVariant>
  static void all(std::integer_sequence<unsigned, kVariant...>) {
    (register_variant<Rule, float, kVariant>(), ...);
    (register_variant<Rule, double, kVariant>(), ...);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
