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
        numel_(tensor_type.attr("numel")),
        is_contiguous_(tensor_type.attr("is_contiguous")) {}

  // The gradients, their addresses written to `out` (0 for None); or None where something is not as
  // planned: a parameter moved or resized, another dtype, a gradient that is not contiguous.
  //   params, dtypes [n]; planned: uint64[2n], addresses and sizes, out: uint64[n], by address
  pybind11::object gather(const pybind11::list& params, const pybind11::list& dtypes,
                          std::uintptr_t planned, std::uintptr_t out) const {
    const std::size_t n = dtypes.size();
    if (params.size() != n) return pybind11::none();
    const auto* expected = reinterpret_cast<const std::uint64_t*>(planned);
    auto* addresses = reinterpret_cast<std::uint64_t*>(out);
    pybind11::list grads(n);
    for (std::size_t i = 0; i < n; ++i) {
      PyObject* param = PyList_GET_ITEM(params.ptr(), Py_ssize_t(i));
      if (integer(data_ptr_, param) != expected[i]) return pybind11::none();
      if (integer(numel_, param) != expected[n + i]) return pybind11::none();
      pybind11::object grad = attribute(grad_, param);
      addresses[i] = 0;
      if (!grad.is_none()) {
        if (attribute(dtype_, grad.ptr()).ptr() != PyList_GET_ITEM(dtypes.ptr(), Py_ssize_t(i)))
          return pybind11::none();
        if (call(is_contiguous_, grad.ptr()).ptr() != Py_True) return pybind11::none();
        if (integer(numel_, grad.ptr()) != expected[n + i]) return pybind11::none();
        // An empty tensor has no address, yet takes its step: any number but 0 will do.
        const std::uint64_t found = integer(data_ptr_, grad.ptr());
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
  static std::uint64_t integer(const pybind11::object& method, PyObject* tensor) {
    return PyLong_AsUnsignedLongLong(call(method, tensor).ptr());
  }

  pybind11::object grad_, dtype_, data_ptr_, numel_, is_contiguous_;
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
