// fusedstep._native: takes raw addresses, knows nothing of torch. launch.py fills in a Launch.
#include <pybind11/pybind11.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include <stdexcept>
#include <string>

#include "core/registry.h"
#include "gather.h"
#include "watch.h"
#include "write_counts.h"

namespace py = pybind11;
using namespace fusedstep;

namespace {

// Whether this processor has the instructions of a level.
bool runs(const std::string& level) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;  // not every compiler's __builtin_cpu_supports knows f16c
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  const bool v3 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (level == "x86_64_v3") return v3;
  if (level == "x86_64_v4") return v4;
#endif
  return level == "generic";
}

// The compiled levels that this processor runs, the widest last.
py::list cpu_levels() {
  py::list levels;
  for (const char* level : {"generic", "x86_64_v3", "x86_64_v4"})
    for (const CpuKernel* k = first_kernel<CpuKernel>(); k != nullptr; k = k->next)
      if (k->level == std::string(level) && runs(level)) {
        levels.append(level);
        break;
      }
  return levels;
}

// The kernel of a rule's variant that `fits`; `kind` and `where` are for the error.
template <class Kernel, class Fits>
const Kernel& find_kernel(const char* kind, const std::string& rule, unsigned variant, bool float64,
                          const std::string& where, Fits fits) {
  for (const Kernel* k = first_kernel<Kernel>(); k != nullptr; k = k->next)
    if (k->rule == rule && k->variant == variant && k->float64 == float64 && fits(*k)) return *k;
  throw std::runtime_error(std::string("no ") + kind + " kernel " + rule + ", variant " +
                           std::to_string(variant) + where +
                           " in this build; if its file is there and registers this rule, " +
                           "run `pip install .` again");
}

const CpuKernel& cpu_kernel(const std::string& rule, unsigned variant, bool float64,
                            const std::string& level) {
  return find_kernel<CpuKernel>(
      "CPU", rule, variant, float64, ", level " + level,
      [&](const CpuKernel& k) { return k.level == level && runs(level); });
}

// A Launch member that Python sets to an integer: an address, a count, a dtype's code.
template <class Member>
void field(py::class_<Launch>& type, const char* name, Member Launch::* member) {
  type.def_property(name, nullptr, [member](Launch& self, std::uint64_t value) {
    if constexpr (std::is_pointer_v<Member>)
      self.*member = reinterpret_cast<Member>(static_cast<std::uintptr_t>(value));
    else
      self.*member = static_cast<Member>(value);
  });
}

template <class Kernel>
py::class_<Kernel> describe(py::module_& m, const char* name) {
  return py::class_<Kernel>(m, name, py::module_local())
      .def_readonly("hypers", &Kernel::hypers)
      .def_readonly("states", &Kernel::states)
      .def_readonly("carried", &Kernel::carried)
      .def_readonly("fading", &Kernel::fading)
      .def_readonly("sums", &Kernel::sums)
      .def_readonly("emits", &Kernel::emits)
      .def_readonly("counted", &Kernel::counted)
      .def_readonly("keeps_absent", &Kernel::keeps_absent)
      .def_readonly("reads_grad", &Kernel::reads_grad)
      .def_readonly("reads_param", &Kernel::reads_param)
      .def_readonly("moves_param", &Kernel::moves_param)
      .def_readonly("read_only", &Kernel::read_only)
      .def_readonly("serves_all", &Kernel::serves_all)
      .def_readonly("counts_all", &Kernel::counts_all);
}

}  // namespace

PYBIND11_MODULE(FUSEDSTEP_MODULE, m) {
  m.attr("CHUNK") = kChunk;

  py::class_<Launch> launch(m, "Launch", py::module_local());
  launch.def(py::init<>());
  field(launch, "tensors", &Launch::tensors);
  field(launch, "chunks", &Launch::chunks);
  field(launch, "elements", &Launch::elements);
  field(launch, "row_size", &Launch::row_size);
  field(launch, "chunk", &Launch::chunk);
  field(launch, "numel", &Launch::numel);
  field(launch, "row", &Launch::row);
  field(launch, "address", &Launch::address);
  field(launch, "grad", &Launch::grad);
  field(launch, "hyper", &Launch::hyper);
  field(launch, "source", &Launch::source);
  field(launch, "grad_scale", &Launch::grad_scale);
  field(launch, "found_inf", &Launch::found_inf);
  field(launch, "grad_norm_sq", &Launch::grad_norm_sq);
  field(launch, "ticket", &Launch::ticket);
  field(launch, "slots", &Launch::slots);
  field(launch, "partial", &Launch::partial);
  field(launch, "slot", &Launch::slot);
  field(launch, "segment", &Launch::segment);
  field(launch, "segment_begin", &Launch::segment_begin);
  field(launch, "segment_chunks", &Launch::segment_chunks);
  field(launch, "segment_sums", &Launch::segment_sums);
  field(launch, "segment_result", &Launch::segment_result);
  field(launch, "arrived", &Launch::arrived);
  field(launch, "param_dtype", &Launch::param_dtype);
  field(launch, "grad_dtype", &Launch::grad_dtype);
  field(launch, "exp_avg_dtype", &Launch::exp_avg_dtype);
  field(launch, "master", &Launch::master);

  describe<CpuKernel>(m, "CpuKernel")
      .def("apply", [](const CpuKernel& self, const Launch& launch, int threads) {
        py::gil_scoped_release release;
        self.apply(launch, threads);
      });
  py::class_<Gatherer>(m, "Gatherer", py::module_local())
      .def(py::init<const py::object&, const py::object&, const py::list&,
                    const std::vector<std::int64_t>&, const std::vector<std::uint64_t>&,
                    const py::list&>())
      .def("gather", &Gatherer::gather);
  py::class_<Watch>(m, "Watch", py::module_local())
      .def(py::init<const py::object&, const py::tuple&, bool, const py::list&>())
      .def("holds", &Watch::holds);
  m.def("count_writes", &count_writes);
  m.def("cpu_levels", &cpu_levels);
  m.def("cpu_kernel", &cpu_kernel, py::return_value_policy::reference);

#ifdef FUSEDSTEP_WITH_CUDA
  describe<CudaKernel>(m, "CudaKernel")
      .def("apply", [](const CudaKernel& self, const Launch& launch, std::uintptr_t stream) {
        py::gil_scoped_release release;
        if (const char* error = self.apply(launch, reinterpret_cast<void*>(stream)))
          throw std::runtime_error(std::string("CUDA: ") + error);
      });
  m.def("cuda_why_not", [] {
    py::gil_scoped_release release;                // the driver may load or translate code
    return first_kernel<CudaKernel>()->why_not();  // all are alike
  });
  m.def(
      "cuda_kernel",
      [](const std::string& rule, unsigned variant, bool float64) -> const CudaKernel& {
        return find_kernel<CudaKernel>("CUDA", rule, variant, float64, "",
                                       [](const CudaKernel&) { return true; });
      },
      py::return_value_policy::reference);
#endif
}
