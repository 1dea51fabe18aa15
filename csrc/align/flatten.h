// Lists of Python ints, as users pass token ids, to packed arrays.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

namespace fgrl {

// `flatten(sequences)`: the ids in lists or tuples of Python ints, as (tokens, lengths), two bytearrays of int64. None
// when anything else is among them: the caller then takes the slow way, which knows more types and words the errors.
inline PyObject* flatten(PyObject*, PyObject* sequences) {
  const Py_ssize_t batch = PyList_Size(sequences);  // raises for anything but a list
  if (batch < 0) return nullptr;
  std::vector<int64_t> tokens, lengths;
  for (Py_ssize_t i = 0; i < batch; ++i) {
    PyObject* sequence = PyList_GetItem(sequences, i);
    const bool list = Py_TYPE(sequence) == &PyList_Type;
    if (!list && Py_TYPE(sequence) != &PyTuple_Type) Py_RETURN_NONE;
    const Py_ssize_t size = list ? PyList_Size(sequence) : PyTuple_Size(sequence);
    lengths.push_back(size);
    for (Py_ssize_t j = 0; j < size; ++j) {
      PyObject* token = list ? PyList_GetItem(sequence, j) : PyTuple_GetItem(sequence, j);
      if (token == nullptr || Py_TYPE(token) != &PyLong_Type) {
        PyErr_Clear();
        Py_RETURN_NONE;
      }
      const int64_t id = PyLong_AsLongLong(token);
      if (id == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        Py_RETURN_NONE;
      }
      tokens.push_back(id);
    }
  }
  const auto bytes = [](const std::vector<int64_t>& values) {
    return PyByteArray_FromStringAndSize(reinterpret_cast<const char*>(values.data()),
                                         static_cast<Py_ssize_t>(values.size() * sizeof(int64_t)));
  };
  return Py_BuildValue("(NN)", bytes(tokens), bytes(lengths));
}

}  // namespace fgrl
