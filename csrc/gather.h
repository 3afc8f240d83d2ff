// The host's share of a step: is everything as planned, and where are the gradients?
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "core/launch.h"
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
// compiled in: tensors describe themselves through DLPack, one C call each. Of a DTensor, this is
// about the part that the process holds.
class Gatherer {
 public:
  // tensor_type: torch.Tensor, of torch 2.10 or later; dtensor_type: DTensor, or None. For each of
  // params, dtypes: the code of its gradient's dtype, or -1 where it is in no launch; places: the
  // address of its entry in a launch's table of gradients, or 0. fixed: tensors that must stay
  // where they are. Whoever makes a Gatherer keeps params, fixed and the tables of gradients alive.
  Gatherer(const pybind11::object& tensor_type, const pybind11::object& dtensor_type,
           const pybind11::list& params, const std::vector<std::int64_t>& dtypes,
           const std::vector<std::uint64_t>& places, const pybind11::list& fixed)
      : dtensor_type_(dtensor_type) {
    const pybind11::object grad = tensor_type.attr("grad");
    if (Py_TYPE(grad.ptr()) != &PyGetSetDescr_Type)
      throw pybind11::import_error("torch.Tensor.grad is no attribute of C");
    get_grad_ = reinterpret_cast<PyGetSetDescrObject*>(grad.ptr())->d_getset;
    is_neg_ = tensor_type.attr("is_neg");
    const pybind11::capsule api = tensor_type.attr("__dlpack_c_exchange_api__");
    const auto* found = api.get_pointer<const dlpack::ExchangeApi>();
    while (found != nullptr && found->major != 1) found = found->previous;
    if (found == nullptr || found->tensor_from_object == nullptr)
      throw pybind11::import_error("torch speaks another version of DLPack");
    view_ = found->tensor_from_object;
    auto* type = reinterpret_cast<PyTypeObject*>(tensor_type.ptr());
    for (const pybind11::handle param : params) {
      if (!PyObject_TypeCheck(param.ptr(), type))
        throw pybind11::import_error("a parameter is no tensor");
      if (pybind11::type::handle_of(param).attr("grad").ptr() != grad.ptr())
        throw pybind11::import_error("a parameter has a grad of its own making");
      Planned planned = {};
      planned.param = param.ptr();
      planned.distributed = is_dtensor(param.ptr());
      planned.grad_dtype = dtypes.at(planned_.size());
      planned.place = pointer<std::uint64_t>(places.at(planned_.size()));
      if (planned.grad_dtype >= 0) {
        const dlpack::Tensor t = view(held(planned, param.ptr()).ptr());
        planned.data = data(t);
        planned.layout = layouts_.size();
        planned.ndim = t.ndim;
        planned.code = t.code;
        planned.bits = t.bits;
        layouts_.insert(layouts_.end(), t.shape, t.shape + t.ndim);
        layouts_.insert(layouts_.end(), t.strides, t.strides + t.ndim);
      }
      planned_.push_back(planned);
    }
    for (const pybind11::handle tensor : fixed)
      fixed_.emplace_back(tensor.ptr(), data(view(tensor.ptr())));
  }

  // Writes the addresses of the gradients into the launches' tables, 0 for None. Returns how many
  // there are, and the gradients, to be kept alive while addresses are in use; or None where
  // something is not as planned: a parameter moved or resized, a gradient of another dtype or
  // layout, memory that is not there.
  pybind11::object gather() const {
    for (const auto& [tensor, address] : fixed_)
      if (data(view(tensor)) != address) return pybind11::none();
    std::size_t present = 0;
    pybind11::list grads(planned_.size());
    for (std::size_t i = 0; i < planned_.size(); ++i) {
      const Planned& planned = planned_[i];
      pybind11::object grad = grad_of(planned.param);
      std::uint64_t address = 0;
      if (!fits(planned, grad.ptr(), address)) return pybind11::none();
      if (planned.place != nullptr) *planned.place = address;
      present += address != 0;
      PyList_SET_ITEM(grads.ptr(), Py_ssize_t(i), grad.release().ptr());
    }
    return pybind11::make_tuple(present, std::move(grads));
  }

 private:
  struct Planned {
    PyObject* param;
    bool distributed;         // a DTensor
    std::int64_t grad_dtype;  // -1: in no launch
    std::uint64_t* place;
    std::uint64_t data;
    std::size_t layout;  // where its shape stands in layouts_, before its strides
    std::int32_t ndim;
    std::uint8_t code, bits;
  };

  // Whether a parameter and its gradient are as planned; `address` becomes the gradient's.
  bool fits(const Planned& planned, PyObject* grad, std::uint64_t& address) const {
    if (planned.grad_dtype < 0) return grad == Py_None;
    const dlpack::Tensor param = view(held(planned, planned.param).ptr());
    if (data(param) != planned.data || param.code != planned.code || param.bits != planned.bits ||
        param.ndim != planned.ndim)
      return false;
    const std::int64_t* shape = layouts_.data() + planned.layout;
    const std::int64_t* strides = shape + planned.ndim;
    for (int i = 0; i < param.ndim; ++i)
      if (param.shape[i] != shape[i] || param.strides[i] != strides[i]) return false;
    if (grad == Py_None) return true;
    if (is_dtensor(grad) != planned.distributed) return false;
    // One spec object for both says that they are cut alike; whether two are equal is for Python.
    if (planned.distributed &&
        !pybind11::getattr(grad, spec_).is(pybind11::getattr(planned.param, spec_)))
      return false;
    const pybind11::object part = held(planned, grad);
    const dlpack::Tensor gradient = view(part.ptr());
    if (!has_dtype(gradient, planned.grad_dtype) || gradient.device_type != param.device_type ||
        gradient.device_id != param.device_id || !same_layout(param, gradient) ||
        negated(part.ptr(), gradient))
      return false;
    // An empty tensor has no address, yet takes its step: any number but 0 will do.
    address = data(gradient);
    if (address == 0 && elements(gradient) == 0) address = 1;
    return address != 0;
  }

  // Whether a tensor's elements are the negatives of what memory holds, which DLPack does not tell.
  // Those of the imaginary part of a conjugated tensor are. Its stride is 2, so that same_layout()
  // refuses it if it has more than one element (but not what as_strided() may make of it): only
  // single elements are asked, as asking all would take longer than all else here.
  bool negated(PyObject* tensor, const dlpack::Tensor& described) const {
    if (elements(described) != 1) return false;
    const auto answer =
        pybind11::reinterpret_steal<pybind11::object>(PyObject_CallOneArg(is_neg_.ptr(), tensor));
    if (!answer) throw pybind11::error_already_set();
    return answer.ptr() == Py_True;
  }

  bool is_dtensor(PyObject* tensor) const {
    return !dtensor_type_.is_none() &&
           PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(dtensor_type_.ptr()));
  }
  // Of a DTensor, the part that this process holds.
  pybind11::object held(const Planned& planned, PyObject* tensor) const {
    if (planned.distributed) return pybind11::getattr(tensor, local_tensor_);
    return pybind11::reinterpret_borrow<pybind11::object>(tensor);
  }
  // A name that attributes are found by at once: Python remembers where interned ones lead.
  static pybind11::object interned(const char* name) {
    return pybind11::reinterpret_steal<pybind11::object>(PyUnicode_InternFromString(name));
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
  pybind11::object grad_of(PyObject* param) const {
    PyObject* grad = get_grad_->get(param, get_grad_->closure);
    if (grad == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(grad);
  }

  pybind11::object dtensor_type_;
  pybind11::object spec_ = interned("_spec"), local_tensor_ = interned("_local_tensor");
  const PyGetSetDef* get_grad_;  // of torch.Tensor.grad, which its type keeps
  pybind11::object is_neg_;      // torch.Tensor.is_neg
  int (*view_)(void*, dlpack::Tensor*);
  std::vector<Planned> planned_;
  std::vector<std::int64_t> layouts_;
  std::vector<std::pair<PyObject*, std::uint64_t>> fixed_;
};

}  // namespace fusedstep
