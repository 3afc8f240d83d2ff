// Whether the objects that a step was planned on are still there: compared by identity.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace fusedstep {

// The very keys and values that a tree of dicts and lists holds, in their order.
class Watch {
 public:
  // names: keys of dicts; entries under them are left out, or with `only` those under all other
  // strings. found: an empty list, which is filled with what the tree holds, every dict and list
  // followed by what it holds itself. Whoever makes a Watch keeps these objects alive, where
  // Python's garbage collector sees them, or asks no more once one is gone. Dicts and lists may go,
  // as their contents are compared.
  Watch(const pybind11::object& tree, const pybind11::tuple& names, bool only,
        const pybind11::list& found)
      : names_(names), only_(only) {
    if (!walk(tree.ptr(), found.ptr())) throw pybind11::error_already_set();
  }

  bool holds(const pybind11::object& tree) const {
    auto at = found_.begin();
    return same(tree.ptr(), at) && at == found_.end();
  }

 private:
  using Found = std::vector<std::pair<PyObject*, bool>>;  // and whether it holds others

  // False with a Python exception set.
  bool walk(PyObject* tree, PyObject* found) {
    if (Py_EnterRecursiveCall(" while options or states are walked")) return false;
    const bool done = each(tree, [&](PyObject* object) {
      found_.emplace_back(object, PyDict_Check(object) || PyList_Check(object));
      return PyList_Append(found, object) == 0 && (!found_.back().second || walk(object, found));
    });
    Py_LeaveRecursiveCall();
    return done;
  }

  bool same(PyObject* tree, Found::const_iterator& at) const {
    return each(tree, [&](PyObject* object) {
      if (at == found_.end() || at->first != object) return false;
      return (at++)->second ? same(object, at) : true;
    });
  }

  // Whether `visit` is true of all that a dict or list holds; it is asked until it is not.
  template <class Visit>
  bool each(PyObject* tree, Visit visit) const {
    if (PyDict_Check(tree)) {
      Py_ssize_t place = 0;
      PyObject *key = nullptr, *value = nullptr;
      while (PyDict_Next(tree, &place, &key, &value))
        if (!left_out(key) && !(visit(key) && visit(value))) return false;
    } else if (PyList_Check(tree)) {
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tree); ++i)
        if (!visit(PyList_GET_ITEM(tree, i))) return false;
    }
    return true;
  }

  bool left_out(PyObject* key) const {
    if (!PyUnicode_Check(key)) return false;
    for (const auto& name : names_)
      if (key == name.ptr()) return !only_;
    for (const auto& name : names_)
      if (PyUnicode_Compare(key, name.ptr()) == 0) return !only_;
    return only_;
  }

  pybind11::tuple names_;
  bool only_;
  Found found_;
};

}  // namespace fusedstep
