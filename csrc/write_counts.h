// How often torch has written into tensors: looked at in every step of some optimizers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fusedstep {

// The sum of `tensor._version` of tensors, or of those that weak references lead to: equal to an
// earlier sum as long as nobody wrote, as versions only grow. version: the descriptor
// torch.Tensor._version, an attribute of C.
inline std::int64_t count_writes(const pybind11::object& version, const pybind11::list& tensors) {
  if (Py_TYPE(version.ptr()) != &PyGetSetDescr_Type)
    throw pybind11::type_error("torch.Tensor._version is no attribute of C");
  const auto* descriptor = reinterpret_cast<PyGetSetDescrObject*>(version.ptr());
  const auto own = [](PyObject* object) {
    if (object == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(object);
  };
  std::int64_t sum = 0;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors.ptr()); ++i) {
    PyObject* item = PyList_GET_ITEM(tensors.ptr(), i);
    const pybind11::object tensor =
        PyWeakref_Check(item) ? own(PyObject_CallNoArgs(item)) : own(Py_NewRef(item));
    if (tensor.is_none()) continue;  // it is gone
    if (!PyObject_TypeCheck(tensor.ptr(), PyDescr_TYPE(descriptor)))
      throw pybind11::type_error("not a tensor");
    const auto& get = *descriptor->d_getset;
    const auto count = PyLong_AsLongLong(own(get.get(tensor.ptr(), get.closure)).ptr());
    if (count == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
    sum += count;
  }
  return sum;
}

}  // namespace fusedstep
