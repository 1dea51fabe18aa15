// Registers the CPU implementations of the ops whose schemas `fgrl.ops` defines, through LibTorch's Stable ABI.
#include <Python.h>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "align/align_edits.h"
#include "binary.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The Python op checks its arguments and names what is wrong; these checks keep a direct call within bounds.
void check_packed(const Tensor& tokens, const Tensor& cu_seqlens, const char* side) {
  STD_TORCH_CHECK(tokens.is_cpu() && tokens.dim() == 1 && tokens.is_contiguous(), side,
                  " must be a contiguous 1-D CPU tensor");
  STD_TORCH_CHECK(cu_seqlens.is_cpu() && cu_seqlens.dim() == 1 && cu_seqlens.is_contiguous() &&
                      cu_seqlens.scalar_type() == ScalarType::Long && cu_seqlens.numel() > 0,
                  side, "_cu_seqlens must be a contiguous, non-empty 1-D int64 CPU tensor");
  const int64_t* bounds = cu_seqlens.const_data_ptr<int64_t>();
  const int64_t batch = cu_seqlens.numel() - 1;
  STD_TORCH_CHECK(bounds[0] == 0 && bounds[batch] == tokens.numel(), side,
                  "_cu_seqlens must start at 0 and end at the number of tokens");
  for (int64_t i = 0; i < batch; ++i) {
    STD_TORCH_CHECK(bounds[i] <= bounds[i + 1], side, "_cu_seqlens must not decrease");
    STD_TORCH_CHECK(bounds[i + 1] - bounds[i] < (int64_t{1} << 30), side, " sequences must be shorter than 2^30");
  }
}

Tensor empty(int64_t size, ScalarType dtype) { return torch::stable::empty({size}, dtype); }

std::tuple<Tensor, Tensor, Tensor> align_edits(const Tensor& original, const Tensor& original_cu_seqlens,
                                               const Tensor& edited, const Tensor& edited_cu_seqlens,
                                               int64_t num_threads, int64_t algorithm, int64_t cpu) {
  check_packed(original, original_cu_seqlens, "original");
  check_packed(edited, edited_cu_seqlens, "edited");
  STD_TORCH_CHECK(original.scalar_type() == edited.scalar_type(), "original and edited must have one dtype");
  STD_TORCH_CHECK(original_cu_seqlens.numel() == edited_cu_seqlens.numel(),
                  "original and edited must have the same number of sequences");
  STD_TORCH_CHECK(algorithm >= 0 && algorithm <= 3 && cpu >= 0 && cpu <= 3, "unknown algorithm or cpu");
  const fgrl::Path path{static_cast<fgrl::Algorithm>(algorithm), static_cast<fgrl::Cpu>(cpu)};
  const int64_t batch = original_cu_seqlens.numel() - 1;
  const int64_t threads = num_threads > 0 ? num_threads : torch::stable::get_num_threads();

  Tensor distance = empty(batch, ScalarType::Long);
  Tensor original_ops = empty(original.numel(), ScalarType::Byte);
  Tensor edited_ops = empty(edited.numel(), ScalarType::Byte);

  const auto parallel = [](int64_t tasks, const auto& run) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) run();
    });
  };
  const auto align = [&](auto token) {
    using Token = decltype(token);
    fgrl::align_batch(
        fgrl::Packed<Token>{original.const_data_ptr<Token>(), original_cu_seqlens.const_data_ptr<int64_t>()},
        fgrl::Packed<Token>{edited.const_data_ptr<Token>(), edited_cu_seqlens.const_data_ptr<int64_t>()}, batch,
        threads, path, distance.mutable_data_ptr<int64_t>(), original_ops.mutable_data_ptr<uint8_t>(),
        edited_ops.mutable_data_ptr<uint8_t>(), parallel);
  };
  if (original.scalar_type() == ScalarType::Int) {
    align(int32_t{});
  } else {
    STD_TORCH_CHECK(original.scalar_type() == ScalarType::Long, "original and edited must be int32 or int64");
    align(int64_t{});
  }
  return {distance, original_ops, edited_ops};
}

// See binary.h.
bool is_binary(const Tensor& values) {
  STD_TORCH_CHECK(values.is_cpu() && values.is_contiguous(), "values must be a contiguous CPU tensor");
  std::atomic<bool> result{true};
  const auto look = [&](auto element) {
    using Element = decltype(element);
    const Element* data = static_cast<const Element*>(values.const_data_ptr());
    torch::stable::parallel_for(0, values.numel(), 1 << 17, [&](int64_t begin, int64_t end) {
      if (!fgrl::is_binary(data + begin, end - begin)) result = false;
    });
  };
  switch (values.scalar_type()) {
    case ScalarType::Byte: look(uint8_t{}); break;
    case ScalarType::Char: look(int8_t{}); break;
    case ScalarType::Short: look(int16_t{}); break;
    case ScalarType::Int: look(int32_t{}); break;
    case ScalarType::Long: look(int64_t{}); break;
    case ScalarType::Float: look(float{}); break;
    case ScalarType::Double: look(double{}); break;
    default: STD_TORCH_CHECK(false, "values must be of an integer type, float32 or float64");
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("align_edits", TORCH_BOX(&align_edits));
  library.impl("is_binary", TORCH_BOX(&is_binary));
}

namespace {

// `flatten(sequences)`: the ids in lists or tuples of Python ints, as (tokens, lengths), two bytearrays of int64. None
// when anything else is among them: the caller then takes the slow way, which knows more types and words the errors.
PyObject* flatten(PyObject*, PyObject* sequences) {
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

}  // namespace

// `import fgrl._C` loads the library, which registers the ops.
PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {{"flatten", flatten, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
