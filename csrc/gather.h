// The host's share of a step: every gradient's address, through Python's own objects.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fusedstep {

// Reads `param.grad` and checks it in the order of the plan. Nothing of torch is compiled in: the
// tensor type's own descriptors are called, which spares looking them up 400 times a step.
class Gatherer {
 public:
  explicit Gatherer(const pybind11::object& tensor_type)
      : grad_(tensor_type.attr("grad")),
        dtype_(tensor_type.attr("dtype")),
        data_ptr_(tensor_type.attr("data_ptr")),
        is_contiguous_(tensor_type.attr("is_contiguous")) {}

  // The gradients, their addresses written to `out` (0 for None); or None where something is not as
  // planned: a parameter moved, another dtype, a gradient that is not contiguous.
  //   params, dtypes [n]; planned, out: uint64[n], by address
  pybind11::object gather(const pybind11::list& params, const pybind11::list& dtypes,
                          std::uintptr_t planned, std::uintptr_t out) const {
    const auto* expected = reinterpret_cast<const std::uint64_t*>(planned);
    auto* addresses = reinterpret_cast<std::uint64_t*>(out);
    pybind11::list grads(params.size());
    for (std::size_t i = 0; i < params.size(); ++i) {
      PyObject* param = PyList_GET_ITEM(params.ptr(), Py_ssize_t(i));
      if (address(param) != expected[i]) return pybind11::none();
      pybind11::object grad = attribute(grad_, param);
      addresses[i] = 0;
      if (!grad.is_none()) {
        if (attribute(dtype_, grad.ptr()).ptr() != PyList_GET_ITEM(dtypes.ptr(), Py_ssize_t(i)))
          return pybind11::none();
        if (call(is_contiguous_, grad.ptr()).ptr() != Py_True) return pybind11::none();
        // An empty tensor has no address, yet takes its step: any number but 0 will do.
        const std::uint64_t found = address(grad.ptr());
        addresses[i] = found != 0 ? found : 1;
      }
      PyList_SET_ITEM(grads.ptr(), Py_ssize_t(i), grad.release().ptr());
    }
    return grads;
  }

 private:
  static pybind11::object owned(PyObject* result) {
    if (result == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(result);
  }
  static pybind11::object attribute(const pybind11::object& descriptor, PyObject* self) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(self));
    return owned(Py_TYPE(descriptor.ptr())->tp_descr_get(descriptor.ptr(), self, type));
  }
  static pybind11::object call(const pybind11::object& method, PyObject* self) {
    PyObject* arguments[] = {self};
    return owned(PyObject_Vectorcall(method.ptr(), arguments, 1, nullptr));
  }
  std::uint64_t address(PyObject* tensor) const {
    return PyLong_AsUnsignedLongLong(call(data_ptr_, tensor).ptr());
  }

  pybind11::object grad_, dtype_, data_ptr_, is_contiguous_;
};

}  // namespace fusedstep
