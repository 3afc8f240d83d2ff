// The host's share of a step: is everything as planned, and where are the gradients?
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/tensor_lists.h"
#include "dlpack.h"

namespace fusedstep {

// Whether memory holds the elements of two tensors in the same order; strides of dimensions of size
// 1 do not count.
inline bool same_layout(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  if (a.ndim != b.ndim) return false;
  for (int i = 0; i < a.ndim; ++i)
    if (a.shape[i] != b.shape[i] || (a.shape[i] != 1 && a.strides[i] != b.strides[i])) return false;
  return true;
}

inline bool has_dtype(const dlpack::Tensor& tensor, std::int64_t dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32:
      return tensor.code == dlpack::kFloat && tensor.bits == 32;
    case DType::f64:
      return tensor.code == dlpack::kFloat && tensor.bits == 64;
    case DType::bf16:
      return tensor.code == dlpack::kBfloat && tensor.bits == 16;
    case DType::f16:
      return tensor.code == dlpack::kFloat && tensor.bits == 16;
  }
  return false;
}

// Reads `param.grad` of every parameter and checks both in the order of the plan. Nothing of torch
// is compiled in: tensors describe themselves through DLPack, one C call each.
class Gatherer {
 public:
  // tensor_type: torch.Tensor, of torch 2.10 or later.
  explicit Gatherer(const pybind11::object& tensor_type)
      : type_(tensor_type), grad_(tensor_type.attr("grad")) {
    const pybind11::capsule api = tensor_type.attr("__dlpack_c_exchange_api__");
    const auto* found = api.get_pointer<const dlpack::ExchangeApi>();
    while (found != nullptr && found->major != 1) found = found->previous;
    if (found == nullptr) throw pybind11::import_error("torch speaks another version of DLPack");
    view_ = found->tensor_from_object;
  }

  // The gradients, their addresses written to `out` (0 for None); or None where something is not as
  // planned: a parameter added, moved or resized, a gradient of another dtype or layout.
  //   groups: lists of parameters, n in all; planned: uint64[n] addresses, int64[n] sizes, int64[n]
  //   dtypes of the gradients; out: uint64[n]; both by address
  pybind11::object gather(const pybind11::list& groups, std::int64_t n, std::uintptr_t planned,
                          std::uintptr_t out) const {
    const auto* address = reinterpret_cast<const std::uint64_t*>(planned);
    const auto* numel = reinterpret_cast<const std::int64_t*>(planned) + n;
    const auto* dtype = numel + n;
    auto* found = reinterpret_cast<std::uint64_t*>(out);
    pybind11::list grads(n);
    std::int64_t i = 0;
    for (const pybind11::handle group : groups) {
      if (!PyList_Check(group.ptr())) return pybind11::none();
      const Py_ssize_t size = PyList_GET_SIZE(group.ptr());
      for (Py_ssize_t k = 0; k < size; ++k, ++i) {
        if (i == n) return pybind11::none();
        PyObject* object = PyList_GET_ITEM(group.ptr(), k);
        dlpack::Tensor param, grad;
        if (!PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(type_.ptr())))
          return pybind11::none();
        if (view_(object, &param) != 0) throw pybind11::error_already_set();
        if (data(param) != address[i] || elements(param) != numel[i]) return pybind11::none();
        pybind11::object gradient = attribute(grad_, object);
        found[i] = 0;
        if (!gradient.is_none()) {
          if (view_(gradient.ptr(), &grad) != 0) throw pybind11::error_already_set();
          if (!has_dtype(grad, dtype[i]) || grad.device_type != param.device_type ||
              grad.device_id != param.device_id || !same_layout(param, grad))
            return pybind11::none();
          // An empty tensor has no address, yet takes its step: any number but 0 will do.
          found[i] = data(grad) != 0 ? data(grad) : 1;
        }
        PyList_SET_ITEM(grads.ptr(), i, gradient.release().ptr());
      }
    }
    if (i != n) return pybind11::none();
    return grads;
  }

 private:
  static std::uint64_t data(const dlpack::Tensor& tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  }
  static std::int64_t elements(const dlpack::Tensor& tensor) {
    std::int64_t n = 1;
    for (int i = 0; i < tensor.ndim; ++i) n *= tensor.shape[i];
    return n;
  }
  static pybind11::object attribute(const pybind11::object& descriptor, PyObject* self) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(self));
    PyObject* result = Py_TYPE(descriptor.ptr())->tp_descr_get(descriptor.ptr(), self, type);
    if (result == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(result);
  }

  pybind11::object type_, grad_;
  int (*view_)(void*, dlpack::Tensor*);
};

// Whether a dict of dicts still holds exactly the objects of `planned`: each inner dict followed by
// its values, in order.
inline bool holds(const pybind11::dict& state, const pybind11::list& planned) {
  Py_ssize_t i = 0, outer = 0;
  const Py_ssize_t n = PyList_GET_SIZE(planned.ptr());
  PyObject *key = nullptr, *inner = nullptr, *value = nullptr;
  while (PyDict_Next(state.ptr(), &outer, &key, &inner)) {
    if (i >= n || inner != PyList_GET_ITEM(planned.ptr(), i++) || !PyDict_Check(inner))
      return false;
    Py_ssize_t place = 0;
    while (PyDict_Next(inner, &place, &key, &value))
      if (i >= n || value != PyList_GET_ITEM(planned.ptr(), i++)) return false;
  }
  return i == n;
}

}  // namespace fusedstep
