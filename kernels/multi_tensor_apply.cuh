// The CUDA engine: chunks to blocks, units of a chunk through the rule, all in one launch.
//
// A unit is 16 bytes of opmath. Unit u of a chunk belongs to thread u mod 256: the lanes of a warp
// touch neighbouring units in every column (8 consecutive elements a thread would split each
// 32-byte sector over two stores), and elements i and i + 1024 stay in one thread, as N7 asks.
#pragma once

#include "columns.cuh"
#include "core/prologue.h"
#include "core/registry.h"
#include "enqueue.cuh"
#include "sums.cuh"

namespace fusedstep {
inline namespace FUSEDSTEP_LEVEL {

// Blocks that must fit a multiprocessor, which limits a thread's registers: 3 leave it 80, 2 in
// float64 128. Rules that read three columns or one need 6 (40) or 8 (32) to keep memory busy.
template <class Rule>
constexpr int resident() {
  const int reads = Rule::kReadsGrad + Rule::kReadsParam + Rule::kStates;
  if (sizeof(typename Rule::opmath) == sizeof(double)) return 2;
  return reads == 1 ? 8 : reads == 3 ? 6 : 3;
}

// Whether a block takes its ticket before it works.
template <class Rule>
constexpr bool kEarlyTicket = Rule::kMovesParam && !Rule::kEmits;

template <class Rule>
__device__ __forceinline__ void update_unit(const Launch& launch, const Prologue<Rule>& now,
                                            typename Rule::opmath scale, const Loaded<Rule>& loaded,
                                            Values<Rule>& values) {
  using T = typename Rule::opmath;
  T g[kUnit<T>];
  widen_unit(launch.grad_dtype, loaded.grad, g);
  widen_unit(source_dtype(launch), loaded.param, values.p);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k)
    widen_unit(state_dtype<T>(launch, k), loaded.state[k], values.state[k]);

  // Dividing by one changes no bit, so it is left out.
  if (Rule::kReadsGrad && launch.grad_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < kUnit<T>; ++i) g[i] = div(g[i], scale);
  }
#pragma unroll
  for (int i = 0; i < kUnit<T>; ++i) {
    T state[kColumns<Rule>], out[kMaxSums];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k] = values.state[k][i];
    update_of<Rule>(now.scalars, g[i] * now.coefficient, values.p[i], state, out);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) values.state[k][i] = state[k];
#pragma unroll
    for (int k = 0; k < (Rule::kEmits ? Rule::kSums : 0); ++k) values.out[k][i] = out[k];
  }
}

// A thread's lanes of N7: kTurns of its units fill them once.
template <class Rule>
struct Lanes {
  using T = typename Rule::opmath;
  static constexpr int kTurns = kThreadLanes / kUnit<T>;
  static_assert(kTurns * kUnit<T> == kThreadLanes);
  double lane[Rule::kEmits ? Rule::kSums : 1][kThreadLanes] = {};

  // Adds n elements of a unit. Nothing is indexed by `turn`, which would cost local memory; adding
  // 0 to a sum of squares changes no bit.
  __device__ __forceinline__ void add(const Values<Rule>& values, int turn, int n) {
#pragma unroll
    for (int k = 0; k < (Rule::kEmits ? Rule::kSums : 0); ++k)
#pragma unroll
      for (int q = 0; q < kTurns; ++q)
#pragma unroll
        for (int i = 0; i < kUnit<T>; ++i) {
          double& sum = lane[k][q * kUnit<T> + i];
          sum = sum + select(q == turn && i < n, square(values.out[k][i]), 0.0);
        }
  }
};

// Takes a loaded unit through the rule and back to memory, and its sums to the thread's lanes.
template <bool kWhole, class Rule>
__device__ __forceinline__ void finish_unit(const Launch& launch, const Columns<Rule>& columns,
                                            const Prologue<Rule>& now, typename Rule::opmath scale,
                                            const Loaded<Rule>& loaded, std::int64_t first, int n,
                                            Lanes<Rule>& lanes, int& turn) {
  Values<Rule> values;
  update_unit(launch, now, scale, loaded, values);
  store_unit<kWhole>(launch, columns, now.faded, first, n, values);
  lanes.add(values, turn, n);
  turn = (turn + 1) % Lanes<Rule>::kTurns;
}

// A thread's units of n elements. A whole one is loaded before the one in front is updated: memory
// works while the rule does. If only the gradient is not aligned, as parts of a flat buffer often
// are (of DistributedDataParallel, of fully_shard), it is loaded element by element. So are all
// columns of what is left, and of tensors that are not aligned. Each of these cases has its own
// loop: in one loop the compiler would split all stores.
template <class Rule>
__device__ __forceinline__ void apply_piece(const Launch& launch, const Prologue<Rule>& now,
                                            typename Rule::opmath scale, std::int64_t tensor,
                                            std::uint64_t grad, std::int64_t begin, int n,
                                            const Place* place) {
  using T = typename Rule::opmath;
  constexpr int kStride = kThreads * kUnit<T>;
  const Columns<Rule> columns(launch, tensor, grad);
  const int whole = columns.aligned ? n / kStride * kStride : 0;
  const int ahead = columns.grad_aligned ? whole : 0;
  const std::int64_t own = begin + int(threadIdx.x) * kUnit<T>;
  Lanes<Rule> lanes;
  Loaded<Rule> next;
  // The other warps' first loads run while thread 0 evaluates the prologue. Only the fading state
  // waits for it: the prologue says whether it is read.
  if (ahead > 0) load_unit<true>(launch, columns, true, own, 0, next);
  __syncthreads();
  if constexpr (Rule::kFading >= 0)
    if (ahead > 0 && !now.faded)
      next.state[Rule::kFading] = load<true, T>(kOpmath<T>, columns.state[Rule::kFading], own, 0);
  int offset = 0, turn = 0;
  for (; offset < ahead; offset += kStride) {
    const Loaded<Rule> loaded = next;
    if (offset + kStride < ahead)
      load_unit<true>(launch, columns, now.faded, own + offset + kStride, 0, next);
    finish_unit<true>(launch, columns, now, scale, loaded, own + offset, kUnit<T>, lanes, turn);
  }
  if constexpr (kGradBeside<Rule>)
    for (; offset < whole; offset += kStride) {
      load_unit<true, false>(launch, columns, now.faded, own + offset, kUnit<T>, next);
      finish_unit<true>(launch, columns, now, scale, next, own + offset, kUnit<T>, lanes, turn);
    }
  for (; offset < n; offset += kStride) {
    const int left = n - offset - int(threadIdx.x) * kUnit<T>;
    load_unit<false>(launch, columns, now.faded, own + offset, left, next);
    finish_unit<false>(launch, columns, now, scale, next, own + offset, left, lanes, turn);
  }
  if constexpr (Rule::kEmits)
    for (int k = 0; k < Rule::kSums; ++k)
      store_partial(launch, *place, k, fold_block<kUnit<T>>(lanes.lane[k]));
}

// Thread 0 takes a ticket when it has read counts, carried scalars and sums for its block: the
// block with the last one may overwrite them. A rule that emits sums has first to store its own.
__device__ __forceinline__ unsigned take_ticket(const Launch& launch) {
  return add_in_order(launch.ticket, 1u);
}

template <class Rule>
__device__ __forceinline__ void advance_all(const Launch& launch, unsigned ticket) {
  bool* last = shared_memory<bool, 1>();
  if (threadIdx.x == 0) {
    *last = ticket == gridDim.x - 1;
    if (*last) see_others();
  }
  __syncthreads();
  if (!*last) return;
  for (std::int64_t i = threadIdx.x; i < launch.tensors; i += kThreads)
    if (advances<Rule>(launch, i)) advance(launch, i, prologue<Rule>(launch, i));
  if (threadIdx.x == 0) *launch.ticket = 0;
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, resident<Rule>())
    apply_kernel(const __grid_constant__ Launch launch) {
  using T = typename Rule::opmath;
  Prologue<Rule>* shared = shared_memory<Prologue<Rule>, 1>();
  Place* place = Rule::kEmits ? shared_memory<Place, 1>() : nullptr;
  if (skipped(launch)) return;
  const bool first = threadIdx.x == 0;
  unsigned ticket = 0;
  if (launch.chunks > 0) {
    const unsigned pieces = gridDim.x / unsigned(launch.chunks);
    const Chunk chunk = launch.chunk[blockIdx.x / pieces];
    const std::int64_t size = kChunk / pieces;
    const std::int64_t begin = chunk.index * kChunk + blockIdx.x % pieces * size;
    const std::int64_t left = launch.numel[chunk.tensor] - begin;
    const std::uint64_t grad = launch.grad[chunk.tensor];
    const bool works = serves<Rule>(grad) && left > 0;
    // Another thread, so that neither waits for the other's memory.
    if (Rule::kEmits && threadIdx.x == kThreads - 1) *place = place_of(launch, chunk);
    if (first && works) *shared = prologue<Rule>(launch, chunk.tensor);
    if (first && kEarlyTicket<Rule>) ticket = take_ticket(launch);
    if (works) {
      const T scale = launch.grad_scale != nullptr ? T(*launch.grad_scale) : T(1);
      apply_piece<Rule>(launch, *shared, scale, chunk.tensor, grad, begin,
                        int(left < size ? left : size), place);
    } else if constexpr (Rule::kEmits) {
      __syncthreads();
      for (int k = 0; k < (Rule::kKeepsAbsent ? 0 : Rule::kSums); ++k)
        store_partial(launch, *place, k, 0.0);
    }
    if constexpr (Rule::kEmits) arrive<Rule>(launch, *place);
  }
  if constexpr (Rule::kMovesParam) {
    if (first && !kEarlyTicket<Rule>) ticket = take_ticket(launch);
    advance_all<Rule>(launch, ticket);
  }
}

// Returns nullptr, or what went wrong.
template <class Rule>
const char* apply(const Launch& launch, void* stream) {
  if (launch.tensors == 0) return nullptr;
  return enqueue(&apply_kernel<Rule>, Rule::kEmits ? 1 : pieces(launch), launch, stream);
}

// Launches nothing: a build may lack code for a device, and a driver be too old for a build. Other
// failures, such as a full memory or an earlier kernel's error, are left for the launch to report.
template <class Rule>
const char* why_not() {
  cudaFuncAttributes found;
  const cudaError_t status = cudaFuncGetAttributes(&found, &apply_kernel<Rule>);
  return is_misfit(status) ? failure("cudaFuncGetAttributes", status) : nullptr;
}

struct CudaEngine {
  template <class Rule, unsigned kVariant>
  static void add() {
    static CudaKernel kernel{facts<Rule>(kVariant), &apply<Rule>, &why_not<Rule>, nullptr};
    register_kernel(&kernel);
  }
};

}  // namespace FUSEDSTEP_LEVEL
}  // namespace fusedstep
