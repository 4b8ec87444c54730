// The ops that decide what counts as zero: certify, that nothing does, and truncate_scale.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

std::tuple<Tensor, Tensor, Tensor> certify_full_rank(const Tensor& gram, const Tensor& inverse,
                                                     const Tensor& exists, const Tensor& atol,
                                                     const Tensor& rtol, int64_t count) {
  constexpr const char* kFunction = "certify";
  Arg(kFunction, "gram", gram).dims(3);
  const int64_t batch = gram.size(0), width = gram.size(2);
  const auto check = [&](const char* argument, const Tensor& tensor,
                         std::initializer_list<int64_t> shape,
                         ScalarType dtype = ScalarType::Double) {
    Arg(kFunction, argument, tensor).is({dtype}).contiguous().shape(shape).on_device_of(gram);
  };
  Arg(kFunction, "gram", gram).must(width > 0 || batch == 0, "have columns");
  check("gram", gram, {batch, width, width});
  check("inverse", inverse, {batch, width, width});
  check("exists", exists, {batch}, ScalarType::Bool);
  check("atol", atol, {batch});
  check("rtol", rtol, {batch});
  Arg(kFunction, "count", count).must(count >= width, "be at least the width of gram");
  const Tensor verdict = empty_on(gram, {batch}, ScalarType::Int);
  const Tensor rank = empty_on(gram, {batch}, ScalarType::Long);
  const Tensor rcond = empty_on(gram, {batch});
  if (gram.numel() > 0) {
    Workspace workspace(gram);
    const int64_t strips = batch * strips_of(width);
    device_of(gram).certify({.gram = data_of<double>(gram),
                             .inverse = data_of<double>(inverse),
                             .exists = data_of<bool>(exists),
                             .atol = data_of<double>(atol),
                             .rtol = data_of<double>(rtol),
                             .batch = batch,
                             .count = count,
                             .width = width,
                             .gram_strips = workspace.empty<double>(strips),
                             .inverse_strips = workspace.empty<double>(strips),
                             .traces = workspace.empty<double>(strips),
                             .verdict = data_of<int32_t>(verdict),
                             .rank = data_of<int64_t>(rank),
                             .rcond = data_of<double>(rcond)},
                            workspace);
  }
  return {verdict, rank, rcond};
}

std::tuple<Tensor, Tensor, Tensor> truncate_scale(const Tensor& values, const Tensor& vectors,
                                                  const Tensor& atol, const Tensor& rtol,
                                                  int64_t gram_count) {
  constexpr const char* kFunction = "truncate_scale";
  const Arg values_arg(kFunction, "values", values), vectors_arg(kFunction, "vectors", vectors);
  values_arg.dims(2);
  vectors_arg.dims(3);
  const int64_t batch = values.size(0), count = vectors.size(1), width = values.size(1);
  values_arg.must(width > 0 || batch == 0, "have columns").is({ScalarType::Double}).contiguous();
  vectors_arg.must(count > 0 || batch == 0, "have rows")
      .is({ScalarType::Double})
      .shape({batch, count, width})
      .on_device_of(values);
  for (const auto& [argument, tensor] : {std::pair("atol", &atol), std::pair("rtol", &rtol)}) {
    Arg(kFunction, argument, *tensor)
        .is({ScalarType::Double})
        .contiguous()
        .shape({batch})
        .on_device_of(values);
  }
  Arg(kFunction, "gram_count", gram_count).must(gram_count >= 0, "be 0 or more");
  const Tensor scaled = empty_on(values, {batch, count, width});
  const Tensor rank = empty_on(values, {batch}, ScalarType::Long);
  const Tensor rcond = empty_on(values, {batch});
  if (vectors.numel() > 0) {
    Workspace workspace(values);
    device_of(values).truncate({.values = data_of<double>(values),
                                .vectors = data_of<double>(vectors),
                                .atol = data_of<double>(atol),
                                .rtol = data_of<double>(rtol),
                                .batch = batch,
                                .count = count,
                                .width = width,
                                .batch_stride = vectors.stride(0),
                                .row_stride = vectors.stride(1),
                                .column_stride = vectors.stride(2),
                                .gram_count = gram_count,
                                .inverses = workspace.empty<double>(batch * width),
                                .scaled = data_of<double>(scaled),
                                .rank = data_of<int64_t>(rank),
                                .rcond = data_of<double>(rcond)},
                               workspace);
  }
  return {scaled, rank, rcond};
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Of each G = XᵀX [k, k], X of `count` rows, and G⁻¹, which `exists` says are of use: whether
  // every singular value of X is proved to exceed max(atol, rtol * the largest). Returns a Verdict
  // of kernels/linalg/certificate.h, the rank and a lower bound on the smallest over the largest.
  m.def(
      "certify(Tensor gram, Tensor inverse, Tensor exists, Tensor atol, Tensor rtol, int count) -> "
      "(Tensor, Tensor, Tensor)");

  // Vectors [b, n, k] with each column divided by its value [b, k], or zero where the value's size
  // does not exceed max(atol, rtol * the largest); the rank; the smallest size kept over the
  // largest. gram_count > 0: the values are eigenvalues of Gram matrices of so many rows, whose
  // square roots are compared (kernels/linalg/truncate.h).
  m.def(
      "truncate_scale(Tensor values, Tensor vectors, Tensor atol, Tensor rtol, int gram_count=0) "
      "-> (Tensor, Tensor, Tensor)");
}

FUSEDSTEP_IMPL(m) {
  m.impl("certify", TORCH_BOX(&fusedstep::certify_full_rank));
  m.impl("truncate_scale", TORCH_BOX(&fusedstep::truncate_scale));
}
