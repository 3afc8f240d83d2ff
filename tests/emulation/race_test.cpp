// Every emulated CUDA kernel against the CPU kernel of the same rule, bit by bit, without Python.
// Built with FUSEDSTEP_SANITIZE=thread it also finds races between the emulated threads.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/launch.h"
#include "cuda_runtime.h"

using namespace fusedstep;

namespace {

constexpr std::int64_t kNumel[] = {1, 5,  1024, 0, 1025, kChunk, kChunk + 1, 2 * kChunk + 777,
                                   3, 130};
constexpr int kTensors = sizeof kNumel / sizeof *kNumel;
constexpr int kWithoutGrad = 4, kMisaligned = 7, kInBucket = 6;
constexpr int kSteps = 3;

struct Dtypes {
  DType param, grad, exp_avg;
  bool master;
};
constexpr Dtypes kFloat[] = {
    {DType::f32, DType::f32, DType::f32, false},   {DType::f32, DType::f32, DType::bf16, false},
    {DType::bf16, DType::bf16, DType::f32, false}, {DType::f16, DType::f32, DType::bf16, false},
    {DType::bf16, DType::bf16, DType::f32, true},  {DType::f16, DType::f16, DType::f32, true}};
constexpr Dtypes kDouble[] = {{DType::f64, DType::f64, DType::f64, false}};

int size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

std::uint64_t address_of_value(const void* value) {
  return reinterpret_cast<std::uintptr_t>(value);
}

// One model with its tables; equal arguments make equal models.
class Model {
 public:
  template <class Kernel>
  Model(const Kernel& kernel, const Dtypes& dtypes, bool scaled, bool fading)
      : row_(kTensors),
        step_(kTensors, 0),
        carried_(kernel.carried * kTensors, fading ? 0x1p-55 : 1.0),
        columns_(kState + kernel.states + kernel.carried),
        address_(std::size_t(columns_) * kTensors),
        grad_(kTensors),
        numel_(kNumel, kNumel + kTensors) {
    const DType opmath = kernel.float64 ? DType::f64 : DType::f32;
    // Numbers that every rule can compute with, whatever its hyper-parameters mean.
    const double values[] = {1e-3, 0.9, 0.5, 0.98, 0.9, 1e-8, 0.01, 1, 1e-16, 0};
    for (int r = 0; r < 2; ++r) {
      hyper_.insert(hyper_.end(), {double(r), 1.0});  // maximize, max_grad_norm
      for (int j = 0; j < kernel.hypers; ++j) hyper_.push_back(values[j % std::size(values)]);
    }
    source_.assign(hyper_.size(), 0);
    if (kernel.hypers > 0) source_[kRuleHyper] = address_of_value(&lr_) + 1;

    for (int i = 0; i < kTensors; ++i) {
      const bool shifted = i == kMisaligned;
      row_[i] = i % 2;
      for (std::int64_t c = 0; c * kChunk < kNumel[i]; ++c) chunk_.push_back({i, std::int32_t(c)});
      address_[kParam * kTensors + i] = column(dtypes.param, i, true, shifted);
      if (dtypes.master) address_[kMaster * kTensors + i] = column(DType::f32, i, true, shifted);
      address_[kStep * kTensors + i] = address_of_value(&step_[i]);
      for (int k = 0; k < kernel.states; ++k)
        address_[(kState + k) * kTensors + i] =
            column(k == 0 ? dtypes.exp_avg : opmath, i, false, shifted);
      for (int j = 0; j < kernel.carried; ++j)
        address_[(kState + kernel.states + j) * kTensors + i] =
            address_of_value(&carried_[j * kTensors + i]);
      if (i != kWithoutGrad) grad_[i] = column(dtypes.grad, i, true, shifted || i == kInBucket);
      // two segments, of the tensors before and from the middle on
      segment_.push_back(i < kTensors / 2 ? 0 : 1);
      slot_.push_back(segment_begin_[2]);
      const std::int64_t chunks = (kNumel[i] + kChunk - 1) / kChunk;
      segment_chunks_[segment_[i]] += chunks;
      if (segment_[i] == 0) segment_begin_[1] += chunks;
      segment_begin_[2] += chunks;
    }
    partial_.assign(kMaxSums * segment_begin_[2], 0.0);
    launch.tensors = kTensors;
    launch.row_size = kRuleHyper + kernel.hypers;
    launch.slots = segment_begin_[2];
    launch.partial = partial_.data();
    launch.slot = slot_.data();
    launch.segment = segment_.data();
    launch.segment_begin = segment_begin_;
    launch.segment_chunks = segment_chunks_;
    launch.segment_sums = segment_sums_;
    launch.segment_result = segment_sums_;
    launch.arrived = arrived_;
    launch.grad_norm_sq = scaled ? &grad_norm_sq_ : nullptr;
    launch.chunks = std::int64_t(chunk_.size());
    launch.elements =
        1;  // the CPU kernel stays on this thread: OpenMP is opaque to ThreadSanitizer
    launch.chunk = chunk_.data();
    launch.numel = numel_.data();
    launch.row = row_.data();
    launch.address = address_.data();
    launch.grad = grad_.data();
    launch.hyper = hyper_.data();
    launch.source = source_.data();
    launch.grad_scale = scaled ? &scale_ : nullptr;
    launch.found_inf = &found_inf;
    launch.ticket = &ticket_;
    launch.param_dtype = dtypes.param;
    launch.grad_dtype = dtypes.grad;
    launch.exp_avg_dtype = dtypes.exp_avg;
    launch.master = dtypes.master;
  }
  Model(const Model&) = delete;

  // Everything that a step may write.
  std::string bytes() const {
    std::string all;
    for (const auto& memory : memory_)
      all.append(reinterpret_cast<const char*>(memory.data()), memory.size() * sizeof(double));
    all.append(reinterpret_cast<const char*>(step_.data()), step_.size() * sizeof step_[0]);
    all.append(reinterpret_cast<const char*>(carried_.data()), carried_.size() * sizeof(double));
    all.append(reinterpret_cast<const char*>(partial_.data()), partial_.size() * sizeof(double));
    all.append(reinterpret_cast<const char*>(sums_), sizeof sums_);
    all.append(reinterpret_cast<const char*>(arrived_), sizeof arrived_);
    all.append(reinterpret_cast<const char*>(&ticket_), sizeof ticket_);
    return all;
  }

  Launch launch;
  float found_inf = 0.0f;

 private:
  // Memory of one tensor; shifted: beside 16-byte boundaries. Moments are not negative; those in a
  // faded column are neither read nor written.
  std::uint64_t column(DType dtype, int tensor, bool negative, bool shifted) {
    const int size = size_of(dtype), shift = shifted ? 1 : 0;
    auto& memory = memory_.emplace_back((kNumel[tensor] + shift) * size / 8 + 2, 0.0);
    char* first = reinterpret_cast<char*>(memory.data()) + shift * size;
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % 16 != 0) std::abort();
    for (std::int64_t i = 0; i < kNumel[tensor]; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const float x = float(std::int64_t(state_) >> 40) * 0x1p-23f;  // in [-1, 1)
      write(dtype, negative || x >= 0.0f ? x : -x, first + i * size);
    }
    return address_of_value(first);
  }

  static void write(DType dtype, float x, char* to) {
    const double wide = x;
    bf16 brain;
    f16 half;
    narrow(x, brain);
    narrow(x, half);
    const void* from = dtype == DType::f64    ? static_cast<const void*>(&wide)
                       : dtype == DType::f32  ? static_cast<const void*>(&x)
                       : dtype == DType::bf16 ? static_cast<const void*>(&brain)
                                              : static_cast<const void*>(&half);
    std::memcpy(to, from, size_of(dtype));
  }

  std::vector<std::vector<double>> memory_;
  std::vector<std::int64_t> row_, step_;
  std::vector<double> carried_;
  int columns_;
  std::vector<std::uint64_t> address_, grad_, source_;
  std::vector<std::int64_t> numel_;
  std::vector<double> hyper_;
  std::vector<Chunk> chunk_;
  std::vector<std::int64_t> segment_, slot_;
  std::int64_t segment_begin_[3] = {}, segment_chunks_[2] = {};
  std::vector<double> partial_;
  double sums_[2][kMaxSums] = {};
  std::uint64_t segment_sums_[2] = {address_of_value(sums_[0]), address_of_value(sums_[1])};
  std::uint32_t arrived_[2] = {};
  double lr_ = 2e-3, grad_norm_sq_ = 4.0;
  float scale_ = 1024.0f;
  std::uint32_t ticket_ = 0;
  std::uint64_t state_ = 1;
};

const CpuKernel* counterpart(const CudaKernel& kernel) {
  for (const CpuKernel* k = first_kernel<CpuKernel>(); k != nullptr; k = k->next)
    if (k->rule == std::string(kernel.rule) && k->variant == kernel.variant &&
        k->float64 == kernel.float64)
      return k;
  return nullptr;
}

bool agree(const CudaKernel& kernel, const Dtypes& dtypes, bool scaled, bool fading) {
  const CpuKernel* cpu = counterpart(kernel);
  if (cpu == nullptr) return false;
  Model expected(*cpu, dtypes, scaled, fading), found(kernel, dtypes, scaled, fading);
  for (int step = 0; step < kSteps; ++step) {
    const std::string before = found.bytes();
    found.found_inf = expected.found_inf = step == 1 ? 2.0f : 0.0f;
    cpu->apply(expected.launch, 1);
    if (const char* error = kernel.apply(found.launch, nullptr)) {
      std::printf("%s\n", error);
      return false;
    }
    if (found.bytes() != expected.bytes()) return false;
    const bool unchanged = found.bytes() == before;
    if (step < 2 && unchanged != (step == 1)) return false;  // the second step is skipped
  }
  return true;
}

// A launch tells any failure; only a misfit of build, driver and GPU says that none can succeed.
bool failures_are_told(const CudaKernel& kernel) {
  Model model(kernel, *kFloat, false, false);
  const std::string before = model.bytes();
  emulation::status = cudaErrorNoKernelImageForDevice;
  const bool misfit = kernel.why_not() != nullptr;
  emulation::status = cudaErrorMemoryAllocation;
  const bool passing = kernel.why_not() == nullptr && kernel.apply(model.launch, nullptr);
  emulation::status = cudaSuccess;
  const bool well = kernel.why_not() == nullptr;
  return misfit && passing && well && model.bytes() == before;
}

// A kernel that is registered again, by another rule's file, leaves the list as it is.
bool is_registered_once() {
  const CpuKernel* head = first_kernel<CpuKernel>();
  register_kernel(head->next);
  return first_kernel<CpuKernel>() == head && head->next->next != head;
}

}  // namespace

int main() {
  if (!is_registered_once()) {
    std::printf("the list of kernels is a ring\n");
    return 1;
  }
  int compared = 0, different = 0;
  for (const CudaKernel* k = first_kernel<CudaKernel>(); k != nullptr; k = k->next) {
    const Dtypes* dtypes = k->float64 ? kDouble : kFloat;
    const int count = k->float64 ? 1 : int(sizeof kFloat / sizeof *kFloat);
    for (int d = 0; d < count; ++d)
      for (const bool fading : {false, true}) {
        if (fading && k->carried == 0) continue;
        ++compared;
        if (agree(*k, dtypes[d], d % 2 == 0, fading)) continue;
        ++different;
        std::printf("%s, variant %u, float64 %d, dtypes %d, fading %d: CUDA and CPU differ\n",
                    k->rule, k->variant, k->float64, d, fading);
      }
  }
  std::printf("%d comparisons, %d different\n", compared, different);
  if (compared == 0 || different != 0) return 1;
  if (failures_are_told(*first_kernel<CudaKernel>())) return 0;
  std::printf("a failure of CUDA is lost, or taken for a misfit, or the other way round\n");
  return 1;
}
