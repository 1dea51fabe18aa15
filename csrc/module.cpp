// The Python module `fgrl._C`. Importing it loads the library, which registers the CPU implementations of the ops whose
// schemas `fgrl.ops` defines; each room does that in its own *.cpp files, through LibTorch's Stable ABI.
#include <Python.h>

#include <iterator>
#include <string>

#include "align/flatten.h"
#include "simd/isa.h"

namespace {

// `cpu_capability()`: the name of the instruction set that the ops run on.
PyObject* cpu_capability(PyObject*, PyObject*) {
  return PyUnicode_FromString(fgrl::ISA_NAMES[static_cast<int>(fgrl::isa())]);
}

// `limit_cpu_capability(name)`: the ops use no better one from now on; returns the limit until now.
PyObject* limit_cpu_capability(PyObject*, PyObject* name) {
  for (int i = 0; i < static_cast<int>(std::size(fgrl::ISA_NAMES)); ++i) {
    if (!PyUnicode_Check(name) || PyUnicode_CompareWithASCIIString(name, fgrl::ISA_NAMES[i]) != 0) continue;
    const fgrl::Isa before = fgrl::isa_limit.exchange(static_cast<fgrl::Isa>(i));
    return PyUnicode_FromString(fgrl::ISA_NAMES[static_cast<int>(before)]);
  }
  return PyErr_Format(PyExc_ValueError, "the CPU capability is %R; it must be default, avx2, avx512 or avx512_bf16", name);
}

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {{"flatten", fgrl::flatten, METH_O, nullptr},
                                  {"cpu_capability", cpu_capability, METH_NOARGS, nullptr},
                                  {"limit_cpu_capability", limit_cpu_capability, METH_O, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
