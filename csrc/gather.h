// The host's share of a step: is everything as planned, and where are the gradients?
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

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

// Reads `param.grad` of every parameter and checks both against a plan. Nothing of torch is
// compiled in: tensors describe themselves through DLPack, one C call each.
class Gatherer {
 public:
  // tensor_type: torch.Tensor, of torch 2.10 or later. groups: lists of parameters; dtypes: for
  // each of them the code of its gradient's dtype, or -1 where it is not planned.
  Gatherer(const pybind11::object& tensor_type, const pybind11::list& groups,
           const std::vector<std::int64_t>& dtypes)
      : type_(tensor_type), grad_(tensor_type.attr("grad")) {
    const pybind11::capsule api = tensor_type.attr("__dlpack_c_exchange_api__");
    const auto* found = api.get_pointer<const dlpack::ExchangeApi>();
    while (found != nullptr && found->major != 1) found = found->previous;
    if (found == nullptr || found->tensor_from_object == nullptr)
      throw pybind11::import_error("torch speaks another version of DLPack");
    view_ = found->tensor_from_object;
    for (const pybind11::handle group : groups) {
      sizes_.push_back(PyList_Size(group.ptr()));
      for (const pybind11::handle param : group) {
        Planned planned{dtypes.at(planned_.size()), {}, {}, {}};
        if (planned.grad_dtype >= 0) {
          planned.param = view(param.ptr());
          planned.shape.assign(planned.param.shape, planned.param.shape + planned.param.ndim);
          planned.strides.assign(planned.param.strides, planned.param.strides + planned.param.ndim);
        }
        planned_.push_back(std::move(planned));
      }
    }
  }

  // The gradients, their addresses written to `out` (by address: uint64 for each parameter, 0 for
  // None); or None where something is not as planned: a parameter added, moved, resized or in
  // another group, a gradient of another dtype or layout, memory that is not there.
  pybind11::object gather(const pybind11::list& groups, std::uintptr_t out) const {
    auto* found = reinterpret_cast<std::uint64_t*>(out);
    if (std::size_t(PyList_GET_SIZE(groups.ptr())) != sizes_.size()) return pybind11::none();
    pybind11::list grads(planned_.size());
    std::size_t i = 0;
    for (std::size_t g = 0; g < sizes_.size(); ++g) {
      PyObject* group = PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g));
      if (!PyList_Check(group) || PyList_GET_SIZE(group) != sizes_[g]) return pybind11::none();
      for (Py_ssize_t k = 0; k < sizes_[g]; ++k, ++i) {
        PyObject* param = PyList_GET_ITEM(group, k);
        if (!PyObject_TypeCheck(param, reinterpret_cast<PyTypeObject*>(type_.ptr())))
          return pybind11::none();
        pybind11::object grad = attribute(grad_, param);
        found[i] = 0;
        if (!fits(planned_[i], param, grad.ptr(), found[i])) return pybind11::none();
        PyList_SET_ITEM(grads.ptr(), Py_ssize_t(i), grad.release().ptr());
      }
    }
    return grads;
  }

 private:
  struct Planned {
    std::int64_t grad_dtype;
    dlpack::Tensor param;
    std::vector<std::int64_t> shape, strides;
  };

  // Whether a parameter and its gradient are as planned; `address` becomes the gradient's.
  bool fits(const Planned& planned, PyObject* object, PyObject* grad,
            std::uint64_t& address) const {
    if (planned.grad_dtype < 0) return grad == Py_None;
    const dlpack::Tensor param = view(object), &expected = planned.param;
    if (data(param) != data(expected) || param.code != expected.code ||
        param.bits != expected.bits || param.ndim != expected.ndim)
      return false;
    for (int i = 0; i < param.ndim; ++i)
      if (param.shape[i] != planned.shape[i] || param.strides[i] != planned.strides[i])
        return false;
    if (grad == Py_None) return true;
    const dlpack::Tensor gradient = view(grad);
    if (!has_dtype(gradient, planned.grad_dtype) || gradient.device_type != param.device_type ||
        gradient.device_id != param.device_id || !same_layout(param, gradient))
      return false;
    // An empty tensor has no address, yet takes its step: any number but 0 will do.
    address = data(gradient);
    if (address == 0 && elements(gradient) == 0) address = 1;
    return address != 0;
  }

  dlpack::Tensor view(PyObject* tensor) const {
    dlpack::Tensor result;
    if (view_(tensor, &result) != 0) throw pybind11::error_already_set();
    return result;
  }
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
  std::vector<Py_ssize_t> sizes_;
  std::vector<Planned> planned_;
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
