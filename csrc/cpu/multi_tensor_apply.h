// The CPU engine: chunks to threads, packs of a chunk through the rule. A rule is compiled for
// float and double only; 16-bit memory is widened and narrowed on its way.
#pragma once

#include "core/prologue.h"
#include "core/reduce.h"
#include "core/registry.h"
#include "cpu/columns.h"
#include "cpu/float_environment.h"
#include "cpu/squares.h"

#define FUSEDSTEP_STRING_(x) #x
#define FUSEDSTEP_STRING(x) FUSEDSTEP_STRING_(x)

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

constexpr std::int64_t kSerialElements = 32768;  // below this, waking threads costs more

// What a chunk's sums are gathered in.
template <class Rule>
struct Lanes {
  using T = typename Rule::opmath;
  alignas(64) double sums[Rule::kEmits ? kMaxSums : 1][kLanes];
  alignas(64) T counted[Pack<T>::kSize];
};

// Up to kLanes elements of a tensor: where they are, and what happens to them.
template <class Rule>
struct Block {
  using T = typename Rule::opmath;
  Column grad, param, rounded, state[Rule::kStates > 0 ? Rule::kStates : 1];
  bool unscales, scales, rounds, faded;
  T grad_scale, coefficient;
  Lanes<Rule>* lanes;
};

template <bool kWhole, class Rule, int kState, class V>
FUSEDSTEP_HD void load_state(V& x, const Block<Rule>& block, int i, int n) {
  if (kState == Rule::kFading && block.faded)
    x = V(typename Rule::opmath(0));
  else
    load<kWhole>(x, block.state[kState], i, n);
}

template <bool kWhole, class Rule, int kState, class V>
FUSEDSTEP_HD void store_state(const V& x, const Block<Rule>& block, int i, int n) {
  if constexpr (kState < kMoved<Rule>)
    if (!(kState == Rule::kFading && block.faded)) store<kWhole>(x, block.state[kState], i, n);
}

// A pack of a block from its element i on, or as much of it as the n elements that are left.
template <class V, bool kWhole, class Rule, std::size_t... S, std::size_t... O>
FUSEDSTEP_HD void update_pack(const typename Rule::Scalars& scalars, const Block<Rule>& block,
                              int i, int n, std::index_sequence<S...>, std::index_sequence<O...>) {
  V g, p, state[sizeof...(S) + 1], out[kMaxSums];
  if constexpr (Rule::kReadsGrad) {
    load<kWhole>(g, block.grad, i, n);
    // Dividing and multiplying by one changes no bit, so it is left out.
    if (block.unscales) g = div(g, V(block.grad_scale));
    if (block.scales) g = g * block.coefficient;
  }
  if constexpr (Rule::kReadsParam) load<kWhole>(p, block.param, i, n);
  (load_state<kWhole, Rule, int(S)>(state[S], block, i, n), ...);
  update_of<Rule>(scalars, g, p, state, out);
  if constexpr (Rule::kMovesParam) {
    store<kWhole>(p, block.param, i, n);
    if (block.rounds) store<kWhole>(p, block.rounded, i, n);
  }
  (store_state<kWhole, Rule, int(S)>(state[S], block, i, n), ...);
  if constexpr (Rule::kEmits)
    (emit<V, kWhole, Rule, int(O)>(out[O], block.lanes->sums[O] + i, block.lanes->counted, n), ...);
}

template <class Rule>
void update_block(const typename Rule::Scalars& shared, int n, const Block<Rule>& columns) {
  // Copies, which no store can change: they are read once.
  const typename Rule::Scalars scalars = shared;
  const Block<Rule> block = columns;
  using Whole = Pack<typename Rule::opmath>;
  using Tail = Pack<typename Rule::opmath, kTailBytes>;
  constexpr auto states = std::make_index_sequence<Rule::kStates>();
  constexpr auto sums = std::make_index_sequence<Rule::kSums>();
  int i = 0;
  for (; i + Whole::kSize <= n; i += Whole::kSize)
    update_pack<Whole, true, Rule>(scalars, block, i, n - i, states, sums);
  for (; i < n; i += Tail::kSize)
    update_pack<Tail, false, Rule>(scalars, block, i, n - i, states, sums);
}

inline Column column(std::uint64_t address, DType dtype, std::int64_t offset) {
  constexpr int sizes[] = {4, 8, 2, 2};  // by DType
  return {address + offset * sizes[int(dtype)], dtype};
}

template <class Rule>
Block<Rule> block_of(const Launch& launch, const Prologue<Rule>& now, std::int64_t tensor,
                     std::int64_t offset, Lanes<Rule>& lanes) {
  using T = typename Rule::opmath;
  Block<Rule> block = {};
  if constexpr (Rule::kReadsGrad) {
    block.grad = column(launch.grad[tensor], launch.grad_dtype, offset);
    block.unscales = launch.grad_scale != nullptr;
    if (block.unscales) block.grad_scale = T(*launch.grad_scale);
    block.scales = now.coefficient != T(1);
    block.coefficient = now.coefficient;
  }
  block.param = column(address_of(launch, kParam, tensor), launch.param_dtype, offset);
  block.rounds = launch.master != 0;
  if (block.rounds) {
    block.rounded = block.param;
    block.param = column(address_of(launch, kMaster, tensor), kOpmath<T>, offset);
  }
  for (int k = 0; k < Rule::kStates; ++k)
    block.state[k] =
        column(address_of(launch, kState + k, tensor), state_dtype<T>(launch, k), offset);
  block.faded = now.faded;
  block.lanes = &lanes;
  return block;
}

// The prologue of the tensor asked for last: neighbours mostly share row, count and carried
// scalars, and scalars cost more than the elements of a small tensor.
template <class Rule>
class LastPrologue {
 public:
  const Prologue<Rule>& of(const Launch& launch, std::int64_t tensor) {
    const std::int64_t row = launch.row[tensor];
    const std::int64_t segment = kReadsSums<Rule> ? launch.segment[tensor] : 0;
    const std::int64_t count = count_of(launch, tensor);
    bool same = row == row_ && segment == segment_ && count == count_;
    for (int j = 0; j < Rule::kCarried; ++j) {
      const double carried = carried_of<Rule>(launch, tensor, j);
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

template <class Rule>
void apply_chunk(const Launch& launch, const Prologue<Rule>& now, const Chunk& chunk,
                 Lanes<Rule>& lanes) {
  using T = typename Rule::opmath;
  const std::int64_t begin = chunk.index * kChunk;
  const std::int64_t numel = launch.numel[chunk.tensor];
  const std::int64_t end = begin + kChunk < numel ? begin + kChunk : numel;
  const int used = lanes_for(end - begin);
  if constexpr (Rule::kEmits) {
    for (int k = 0; k < Rule::kSums; ++k)
      for (int l = 0; l < used; ++l) lanes.sums[k][l] = 0.0;
    for (T& count : lanes.counted) count = T(0);
  }
  for (std::int64_t offset = begin; offset < end; offset += kLanes) {
    const std::int64_t left = end - offset;
    update_block<Rule>(now.scalars, int(left < kLanes ? left : kLanes),
                       block_of(launch, now, chunk.tensor, offset, lanes));
  }
  if constexpr (Rule::kEmits)
    for (int k = 0; k < Rule::kSums; ++k) {
      double& sum = partial_of(launch, chunk)[k * launch.slots];
      if (is_count<Rule>(k)) {
        T count = 0;
#pragma omp simd reduction(+ : count)
        for (int i = 0; i < Pack<T>::kSize; ++i) count += lanes.counted[i];
        sum = count;
      } else {
        fold(lanes.sums[k], used, 1);
        sum = lanes.sums[k][0];
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
    if (kKeepsSums<Rule> && sums[Rule::kSums - 1] == 0.0) continue;
    for (int k = 0; k < Rule::kSums; ++k) result_of(launch, segment)[k] = sums[k];
  }
}

template <class Rule>
void apply(const Launch& launch, int threads) {
  const FloatEnvironment calling_thread;
  if (skipped(launch)) return;
#pragma omp parallel num_threads(threads) if (launch.elements > kSerialElements)
  {
    const FloatEnvironment worker;
    Lanes<Rule> lanes;
    LastPrologue<Rule> last;
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t i = 0; i < launch.chunks; ++i) {
      const Chunk chunk = launch.chunk[i];
      if (!serves<Rule>(launch.grad[chunk.tensor])) {
        if constexpr (Rule::kEmits && !Rule::kKeepsAbsent)
          for (int k = 0; k < Rule::kSums; ++k) partial_of(launch, chunk)[k * launch.slots] = 0.0;
        continue;
      }
      apply_chunk<Rule>(launch, last.of(launch, chunk.tensor), chunk, lanes);
    }
  }
  if constexpr (Rule::kMovesParam) {
    LastPrologue<Rule> last;
    for (std::int64_t tensor = 0; tensor < launch.tensors; ++tensor)
      if (advances<Rule>(launch, tensor)) advance(launch, tensor, last.of(launch, tensor));
  }
  if constexpr (Rule::kEmits) finish_sums<Rule>(launch);
}

struct CpuEngine {
  template <class Rule, unsigned kVariant>
  static void add() {
    static CpuKernel kernel{facts<Rule>(kVariant), FUSEDSTEP_STRING(FUSEDSTEP_LEVEL), &apply<Rule>,
                            nullptr};
    register_kernel(&kernel);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
