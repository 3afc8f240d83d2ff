// The host's share of a step: is everything as planned, and where are the gradients?
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
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
  // tensor_type: torch.Tensor, of torch 2.10 or later. groups: lists of parameters. For each of
  // them, dtypes: the code of its gradient's dtype, or -1 where it is in no launch; places: the
  // address of its entry in a launch's table of gradients, or 0.
  Gatherer(const pybind11::object& tensor_type, const pybind11::list& groups,
           const std::vector<std::int64_t>& dtypes, const std::vector<std::uint64_t>& places)
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
        Planned planned = {};
        planned.grad_dtype = dtypes.at(planned_.size());
        planned.place = pointer<std::uint64_t>(places.at(planned_.size()));
        if (planned.grad_dtype >= 0) {
          const dlpack::Tensor t = view(param.ptr());
          planned = {
              planned.grad_dtype, planned.place, data(t), layouts_.size(), t.ndim, t.code, t.bits};
          layouts_.insert(layouts_.end(), t.shape, t.shape + t.ndim);
          layouts_.insert(layouts_.end(), t.strides, t.strides + t.ndim);
        }
        planned_.push_back(planned);
      }
    }
  }

  // Writes the addresses of the gradients into the launches' tables, 0 for None, and tells whether
  // there is any; or None where something is not as planned: a parameter added, moved, resized or
  // in another group, a gradient of another dtype or layout, memory that is not there.
  pybind11::object gather(const pybind11::list& groups) const {
    if (std::size_t(PyList_GET_SIZE(groups.ptr())) != sizes_.size()) return pybind11::none();
    bool any = false;
    std::size_t i = 0;
    for (std::size_t g = 0; g < sizes_.size(); ++g) {
      PyObject* group = PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g));
      if (!PyList_Check(group) || PyList_GET_SIZE(group) != sizes_[g]) return pybind11::none();
      for (Py_ssize_t k = 0; k < sizes_[g]; ++k, ++i) {
        PyObject* param = PyList_GET_ITEM(group, k);
        if (!PyObject_TypeCheck(param, reinterpret_cast<PyTypeObject*>(type_.ptr())))
          return pybind11::none();
        const pybind11::object grad = attribute(grad_, param);
        std::uint64_t address = 0;
        if (!fits(planned_[i], param, grad.ptr(), address)) return pybind11::none();
        if (planned_[i].place != nullptr) *planned_[i].place = address;
        any = any || address != 0;
      }
    }
    return pybind11::bool_(any);
  }

 private:
  struct Planned {
    std::int64_t grad_dtype;  // -1: in no launch
    std::uint64_t* place;
    std::uint64_t data;
    std::size_t layout;  // where its shape stands in layouts_, before its strides
    std::int32_t ndim;
    std::uint8_t code, bits;
  };

  // Whether a parameter and its gradient are as planned; `address` becomes the gradient's.
  bool fits(const Planned& planned, PyObject* object, PyObject* grad,
            std::uint64_t& address) const {
    if (planned.grad_dtype < 0) return grad == Py_None;
    const dlpack::Tensor param = view(object);
    if (data(param) != planned.data || param.code != planned.code || param.bits != planned.bits ||
        param.ndim != planned.ndim)
      return false;
    const std::int64_t* shape = layouts_.data() + planned.layout;
    const std::int64_t* strides = shape + planned.ndim;
    for (int i = 0; i < param.ndim; ++i)
      if (param.shape[i] != shape[i] || param.strides[i] != strides[i]) return false;
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
  std::vector<std::int64_t> layouts_;
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
