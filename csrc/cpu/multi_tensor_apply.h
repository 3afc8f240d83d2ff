// The CPU engine: chunks to threads, blocks of a chunk through the rule.
//
// A block whose memory is already opmath is updated in place. 16-bit memory is widened into a
// scratch block that stays in the first-level cache and narrowed back, so that a rule is compiled
// for float and double only.
#pragma once

#include "core/prologue.h"
#include "core/reduce.h"
#include "core/registry.h"
#include "cpu/float_environment.h"
#include "cpu/pack.h"
#include "cpu/squares.h"
#include "cpu/widen.h"

#define FUSEDSTEP_STRING_(x) #x
#define FUSEDSTEP_STRING(x) FUSEDSTEP_STRING_(x)

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr int kBlock = 256;                      // elements between widening and narrowing
constexpr std::int64_t kSerialElements = 32768;  // below this, waking threads costs more

// One column of a block: where it is opmath already, the memory itself, else `scratch`, filled.
template <class T>
T* open_block(DType dtype, std::uint64_t address, std::int64_t offset, int n, T* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bf16)
      return widen_block(scratch, pointer<const bf16>(address) + offset, n), scratch;
    if (dtype == DType::f16)
      return widen_block(scratch, pointer<const f16>(address) + offset, n), scratch;
  }
  return pointer<T>(address) + offset;
}

template <class T>
void close_block(DType dtype, const T* block, std::uint64_t address, std::int64_t offset, int n) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bf16) narrow_block(block, pointer<bf16>(address) + offset, n);
    if (dtype == DType::f16) narrow_block(block, pointer<f16>(address) + offset, n);
  }
}

// The columns of a block, in opmath.
template <class Rule>
struct Block {
  using T = typename Rule::opmath;
  const T* g;
  T* p;
  T* state[Rule::kStates > 0 ? Rule::kStates : 1];
  double* lanes[kMaxSums];  // the first element's of every sum
  T* counted;
};

// A pack of a block from its element i on, or as much of it as the n elements that are left.
template <class V, bool kWhole, class Rule, std::size_t... S, std::size_t... M, std::size_t... O>
FUSEDSTEP_HD void update_pack(const typename Rule::Scalars& scalars, const Block<Rule>& block,
                              int i, int n, std::index_sequence<S...>, std::index_sequence<M...>,
                              std::index_sequence<O...>) {
  V g, p, state[sizeof...(S) + 1], out[kMaxSums];
  if constexpr (Rule::kReadsGrad) load<kWhole>(g, block.g + i, n);
  if constexpr (Rule::kReadsParam) load<kWhole>(p, block.p + i, n);
  (load<kWhole>(state[S], block.state[S] + i, n), ...);
  update_of<Rule>(scalars, g, p, state, out);
  if constexpr (Rule::kMovesParam) store<kWhole>(p, block.p + i, n);
  (store<kWhole>(state[M], block.state[M] + i, n), ...);
  if constexpr (Rule::kEmits)
    (emit<V, kWhole, Rule, int(O)>(out[O], block.lanes[O] + i, block.counted, n), ...);
}

template <class Rule>
void update_block(const typename Rule::Scalars& shared, int n, const Block<Rule>& columns) {
  // Copies, which no store can change: they are read once.
  const typename Rule::Scalars scalars = shared;
  const Block<Rule> block = columns;
  using Whole = Pack<typename Rule::opmath>;
  using Tail = Pack<typename Rule::opmath, kTailBytes>;
  constexpr auto states = std::make_index_sequence<Rule::kStates>();
  constexpr auto moved = std::make_index_sequence<kMoved<Rule>>();
  constexpr auto sums = std::make_index_sequence<Rule::kSums>();
  int i = 0;
  for (; i + Whole::kSize <= n; i += Whole::kSize)
    update_pack<Whole, true, Rule>(scalars, block, i, n - i, states, moved, sums);
  for (; i < n; i += Tail::kSize)
    update_pack<Tail, false, Rule>(scalars, block, i, n - i, states, moved, sums);
}

template <class Rule>
struct Scratch {
  using T = typename Rule::opmath;
  alignas(64) T g[kBlock], p[kBlock], exp_avg[kBlock], zeros[kBlock];
  alignas(64) T counted[Pack<T>::kSize];
  alignas(64) double lanes[Rule::kEmits ? kMaxSums : 1][kLanes];
};

template <class Rule>
void apply_block(const Launch& launch, const Prologue<Rule>& now, std::int64_t tensor,
                 std::int64_t offset, int n, Scratch<Rule>& scratch) {
  using T = typename Rule::opmath;
  const std::uint64_t param = address_of(launch, launch.master ? kMaster : kParam, tensor);
  const std::uint64_t exp_avg = address_of(launch, kState, tensor);
  const DType param_dtype = launch.master ? DType::f32 : launch.param_dtype;

  Block<Rule> block = {};
  if constexpr (Rule::kReadsGrad) {
    block.g = open_block<T>(launch.grad_dtype, launch.grad[tensor], offset, n, scratch.g);
    // Dividing and multiplying by one changes no bit, so it is left out.
    if (launch.grad_scale != nullptr || now.coefficient != T(1)) {
      const T scale = launch.grad_scale != nullptr ? T(*launch.grad_scale) : T(1);
      const T* unscaled = block.g;
#pragma omp simd
      for (int i = 0; i < n; ++i) scratch.g[i] = div(unscaled[i], scale) * now.coefficient;
      block.g = scratch.g;
    }
  }
  if constexpr (Rule::kReadsParam)
    block.p = open_block<T>(param_dtype, param, offset, n, scratch.p);
  if constexpr (Rule::kStates > 0)
    block.state[0] = open_block<T>(launch.exp_avg_dtype, exp_avg, offset, n, scratch.exp_avg);
  for (int k = 1; k < Rule::kStates; ++k)
    block.state[k] = pointer<T>(address_of(launch, kState + k, tensor)) + offset;
  if (Rule::kFading > 0 && now.faded) {
    for (int i = 0; i < n; ++i) scratch.zeros[i] = T(0);
    block.state[Rule::kFading > 0 ? Rule::kFading : 0] = scratch.zeros;
  }
  if constexpr (Rule::kEmits)
    for (int k = 0; k < Rule::kSums; ++k) block.lanes[k] = scratch.lanes[k] + offset % kLanes;
  block.counted = scratch.counted;

  update_block<Rule>(now.scalars, n, block);

  if constexpr (kMoved<Rule> > 0)
    close_block(launch.exp_avg_dtype, block.state[0], exp_avg, offset, n);
  if constexpr (Rule::kMovesParam)
    close_block(launch.param_dtype, block.p, address_of(launch, kParam, tensor), offset, n);
}

// The prologue of the tensor asked for last: neighbours mostly share row, count and carried
// scalars, and scalars cost more than the elements of a small tensor.
template <class Rule>
class LastPrologue {
 public:
  const Prologue<Rule>& of(const Launch& launch, std::int64_t tensor) {
    const std::int64_t row = launch.row[tensor];
    const std::int64_t segment = kReadsSums<Rule> ? launch.segment[tensor] : 0;
    const auto count = *pointer<const std::int64_t>(address_of(launch, kStep, tensor));
    bool same = row == row_ && segment == segment_ && count == count_;
    for (int j = 0; j < Rule::kCarried; ++j) {
      const auto carried =
          *pointer<const double>(address_of(launch, kState + Rule::kStates + j, tensor));
      same = same && carried == carried_[j];
      carried_[j] = carried;
    }
    if (!same) now_ = prologue<Rule>(launch, tensor);
    row_ = row;
    segment_ = segment;
    count_ = count;
    return now_;
  }

 private:
  Prologue<Rule> now_{};
  std::int64_t row_ = -1, segment_ = -1, count_ = -1;
  double carried_[kMaxCarried] = {};
};

// The chunk's place in `partial`; columns are `slots` apart.
inline double* partial_of(const Launch& launch, const Chunk& chunk) {
  return launch.partial + launch.slot[chunk.tensor] + chunk.index;
}

template <class Rule>
void apply_chunk(const Launch& launch, const Prologue<Rule>& now, const Chunk& chunk,
                 Scratch<Rule>& scratch) {
  using T = typename Rule::opmath;
  const std::int64_t begin = chunk.index * kChunk;
  const std::int64_t numel = launch.numel[chunk.tensor];
  const std::int64_t end = begin + kChunk < numel ? begin + kChunk : numel;
  const int lanes = lanes_for(end - begin);
  if constexpr (Rule::kEmits) {
    for (int k = 0; k < Rule::kSums; ++k)
      for (int l = 0; l < lanes; ++l) scratch.lanes[k][l] = 0.0;
    for (T& count : scratch.counted) count = T(0);
  }
  for (std::int64_t offset = begin; offset < end; offset += kBlock) {
    const std::int64_t left = end - offset;
    apply_block<Rule>(launch, now, chunk.tensor, offset, int(left < kBlock ? left : kBlock),
                      scratch);
  }
  if constexpr (Rule::kEmits)
    for (int k = 0; k < Rule::kSums; ++k) {
      double& sum = partial_of(launch, chunk)[k * launch.slots];
      if (is_count<Rule>(k)) {
        T count = 0;
#pragma omp simd reduction(+ : count)
        for (int i = 0; i < Pack<T>::kSize; ++i) count += scratch.counted[i];
        sum = count;
      } else {
        fold(scratch.lanes[k], lanes, 1);
        sum = scratch.lanes[k][0];
      }
    }
}

// Counts the launch's chunks in, and sums every segment that is complete.
template <class Rule>
void finish_sums(const Launch& launch) {
  for (std::int64_t i = 0; i < launch.chunks; ++i) {
    const std::int64_t segment = launch.segment[launch.chunk[i].tensor];
    if (++launch.arrived[segment] != launch.segment_chunks[segment]) continue;
    launch.arrived[segment] = 0;
    double sums[Rule::kSums];
    for (int k = 0; k < Rule::kSums; ++k) {
      const double* partial = launch.partial + k * launch.slots;
      const std::int64_t begin = launch.segment_begin[segment];
      const std::int64_t end = launch.segment_begin[segment + 1];
      const int count = lanes_for(end - begin);
      double lanes[kLanes];
      for (int l = 0; l < count; ++l) lanes[l] = 0.0;
      for (std::int64_t s = begin; s < end; ++s) lanes[(s - begin) % kLanes] += partial[s];
      fold(lanes, count, 1);
      sums[k] = lanes[0];
    }
    if (Rule::kCounted && sums[Rule::kSums - 1] == 0.0) continue;
    for (int k = 0; k < Rule::kSums; ++k) sums_of(launch, segment)[k] = sums[k];
  }
}

template <class Rule>
void apply(const Launch& launch, int threads) {
  static_assert(check_rule<Rule>());
  if (skipped(launch)) return;
#pragma omp parallel num_threads(threads) if (launch.elements > kSerialElements)
  {
    const FloatEnvironment environment;
    alignas(64) Scratch<Rule> scratch;
    LastPrologue<Rule> last;
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t i = 0; i < launch.chunks; ++i) {
      const Chunk chunk = launch.chunk[i];
      if (!serves<Rule>(launch, chunk.tensor)) {
        if constexpr (Rule::kEmits && !Rule::kKeepsAbsent)
          for (int k = 0; k < Rule::kSums; ++k) partial_of(launch, chunk)[k * launch.slots] = 0.0;
        continue;
      }
      apply_chunk<Rule>(launch, last.of(launch, chunk.tensor), chunk, scratch);
    }
  }
  const FloatEnvironment environment;
  if constexpr (Rule::kMovesParam) {
    LastPrologue<Rule> last;
    for (std::int64_t tensor = 0; tensor < launch.tensors; ++tensor)
      if (advances<Rule>(launch, tensor)) advance(launch, tensor, last.of(launch, tensor));
  }
  if constexpr (Rule::kEmits) finish_sums<Rule>(launch);
}

struct CpuEngine {
  template <class Rule>
  static void add(unsigned variant) {
    static CpuKernel kernel{facts<Rule>(variant), FUSEDSTEP_STRING(FUSEDSTEP_LEVEL), &apply<Rule>,
                            nullptr};
    register_kernel(&kernel);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
