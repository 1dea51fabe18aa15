// Registers the CPU implementations of the steps of linear_kl, whose schemas are in fgrl/ops/_divergence.py.
#include "linear/kl_rows.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "tensors/tensors.h"

namespace {

using namespace fgrl;

// What both steps read: rows of logits of a student and of a teacher, each of a larger buffer, and their normalizers.
template <typename T>
struct Pairs {
  KlSide<T> student, teacher;  // of row 0, with normalizers of none
  const T* normalizers;        // [4, count]: max and log of the sum, of the student and of the teacher
  int64_t count, size, student_stride, teacher_stride;

  Pairs(Inputs& inputs, const Tensor& student_logits, const Tensor& teacher_logits, const OptionalTensor& bias,
        const OptionalTensor& teacher_bias, const Tensor& normalizers_, double temperature,
        std::optional<double> softcap, std::optional<double> teacher_softcap)
      : count(student_logits.size(0)), size(student_logits.size(1)), student_stride(student_logits.stride(0)),
        teacher_stride(teacher_logits.stride(0)) {
    for (const Tensor* logits : {&student_logits, &teacher_logits}) {
      STD_TORCH_CHECK(logits->is_cpu() && logits->dim() == 2 && logits->stride(1) == 1, "logits must be rows on the CPU");
      STD_TORCH_CHECK(logits->size(0) == count && logits->size(1) == size, "both must have as many logits");
      STD_TORCH_CHECK(logits->scalar_type() == student_logits.scalar_type(), "both must have one dtype");
    }
    const T inverse = static_cast<T>(1 / temperature);
    student = {static_cast<const T*>(student_logits.const_data_ptr()), inputs.read<T>(bias, size),
               {inverse, static_cast<T>(softcap.value_or(0))}, 0, 0};
    teacher = {static_cast<const T*>(teacher_logits.const_data_ptr()), inputs.read<T>(teacher_bias, size),
               {inverse, static_cast<T>(teacher_softcap.value_or(0))}, 0, 0};
    normalizers = inputs.read<T>(normalizers_, 4 * count);
  }

  template <typename Run>
  void for_each(const Run& run) const {
    struct Stateless {};
    for_each_task<Stateless>(count, 2 * count * size, [&](Stateless&, int64_t i) {
      KlSide<T> ours = student, theirs = teacher;
      ours.logits += i * student_stride, theirs.logits += i * teacher_stride;
      ours.max = normalizers[i], ours.log_sum = normalizers[count + i];
      theirs.max = normalizers[2 * count + i], theirs.log_sum = normalizers[3 * count + i];
      run(ours, theirs, i);
    });
  }
};

Tensor kl_statistics_of_rows(const Tensor& student, const Tensor& teacher, const OptionalTensor& bias,
                             const OptionalTensor& teacher_bias, const Tensor& normalizers, double temperature,
                             std::optional<double> softcap, std::optional<double> teacher_softcap, int64_t divergence,
                             double beta) {
  const ScalarType dtype = student.scalar_type();
  Tensor statistics = torch::stable::empty({2, 1, student.size(0)}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    const Pairs<T> pairs(inputs, student, teacher, bias, teacher_bias, normalizers, temperature, softcap,
                         teacher_softcap);
    T* to = data<T>(statistics);
    pairs.for_each([&](const KlSide<T>& ours, const KlSide<T>& theirs, int64_t i) {
      const KlStatistics<T> found =
          kl_statistics<T>(ours, theirs, pairs.size, static_cast<Divergence>(divergence), static_cast<T>(beta));
      to[i] = found.divergence, to[pairs.count + i] = found.student;
    });
  });
  return statistics;
}

void kl_gradient_of_rows(const Tensor& student, const Tensor& teacher, const OptionalTensor& bias,
                         const OptionalTensor& teacher_bias, const Tensor& normalizers, const Tensor& grads,
                         double temperature, std::optional<double> softcap, std::optional<double> teacher_softcap,
                         int64_t divergence, double beta, Tensor out) {
  const ScalarType dtype = student.scalar_type(), out_dtype = out.scalar_type();
  STD_TORCH_CHECK(out_dtype == dtype || (out_dtype == ScalarType::BFloat16 && dtype == ScalarType::Float),
                  "out must have the dtype of the logits, or bfloat16 for float32 logits");
  STD_TORCH_CHECK(out.size(0) == student.size(0) && out.size(1) == student.size(1) && out.stride(1) == 1,
                  "out must be like the logits");
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    const Pairs<T> pairs(inputs, student, teacher, bias, teacher_bias, normalizers, temperature, softcap,
                         teacher_softcap);
    const T* from = inputs.read<T>(grads, 2 * pairs.count);
    const int64_t stride = out.stride(0);
    const auto write = [&](auto* to) {
      pairs.for_each([&](const KlSide<T>& ours, const KlSide<T>& theirs, int64_t i) {
        kl_gradient(ours, theirs, pairs.size, static_cast<Divergence>(divergence), static_cast<T>(beta),
                    {from[i], from[pairs.count + i]}, to + i * stride);
      });
    };
    if (out_dtype == dtype) return write(data<T>(out));
    if constexpr (std::is_same_v<T, float>) write(data<BFloat16>(out));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("kl_statistics", TORCH_BOX(&kl_statistics_of_rows));
  library.impl("kl_gradient", TORCH_BOX(&kl_gradient_of_rows));
}
