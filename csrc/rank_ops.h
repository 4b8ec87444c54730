// What counts as zero, as ops for either device: the certificate that nothing does, and truncation.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <tuple>

#include "csrc/checks.h"
#include "csrc/empty.h"
#include "kernels/linalg/truncate.h"

namespace fusedstep {

// Of dtype float64 unless another code is given; where `contiguous`, in the order of memory.
inline void require_sizes(const char* function, const char* argument, const Tensor& tensor,
                          const std::vector<int64_t>& sizes, const Tensor& reference,
                          int32_t dtype = aoti_torch_dtype_float64(), bool contiguous = true) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  require(code == dtype && is_strided(tensor) && (!contiguous || is_contiguous(tensor)), function,
          argument, -1,
          dtype == aoti_torch_dtype_bool() ? "be contiguous bool"
          : contiguous                     ? "be contiguous float64"
                                           : "be dense float64",
          "something else");
  const auto dims = dimensions(tensor);
  std::ostringstream must, got;
  for (const int64_t size : sizes) {
    must << (must.tellp() > 0 ? ", " : "have the shape [") << size;
  }
  must << "]";
  for (const Dimension& dim : dims) {
    got << (got.tellp() > 0 ? ", " : "[") << dim.size;
  }
  got << "]";
  require(std::ranges::equal(dims, sizes, {}, &Dimension::size), function, argument, -1,
          must.str().c_str(), got.str());
  require_same_device(function, argument, -1, tensor, reference);
}

// `Kernels::certify(certificates, device)` and `Kernels::truncate(truncation, device)` do the work
// of matrices that are not empty.
template <typename Kernels>
struct RankOps {
  static std::tuple<Tensor, Tensor, Tensor> certify(const Tensor& gram, const Tensor& inverse,
                                                    const Tensor& exists, const Tensor& atol,
                                                    const Tensor& rtol, int64_t count) {
    constexpr const char* kFunction = "certify";
    require(gram.dim() == 3, kFunction, "gram", -1, "have three dimensions", gram.dim());
    const int64_t batch = gram.size(0), width = gram.size(2);
    require(width > 0 || batch == 0, kFunction, "gram", -1, "have columns", width);
    require_sizes(kFunction, "gram", gram, {batch, width, width}, gram);
    require_sizes(kFunction, "inverse", inverse, {batch, width, width}, gram);
    require_sizes(kFunction, "exists", exists, {batch}, gram, aoti_torch_dtype_bool());
    require_sizes(kFunction, "atol", atol, {batch}, gram);
    require_sizes(kFunction, "rtol", rtol, {batch}, gram);
    require(count >= width, kFunction, "count", -1, "be at least the width of gram", count);
    const Tensor verdict = empty_beside(gram, {batch}, ScalarType::Int);
    const Tensor rank = empty_beside(gram, {batch}, ScalarType::Long);
    const Tensor rcond = empty_beside(gram, {batch});
    if (gram.numel() > 0) {
      const int64_t strips = batch * strips_of(width);
      const Tensor room = empty_beside(gram, {3, strips});
      Kernels::certify({.gram = doubles(gram),
                        .inverse = doubles(inverse),
                        .exists = static_cast<const bool*>(exists.data_ptr()),
                        .atol = doubles(atol),
                        .rtol = doubles(rtol),
                        .batch = batch,
                        .count = count,
                        .width = width,
                        .gram_strips = doubles(room),
                        .inverse_strips = doubles(room) + strips,
                        .traces = doubles(room) + 2 * strips,
                        .verdict = static_cast<int32_t*>(verdict.data_ptr()),
                        .rank = static_cast<int64_t*>(rank.data_ptr()),
                        .rcond = doubles(rcond)},
                       gram.get_device());
    }
    return {verdict, rank, rcond};
  }

  static std::tuple<Tensor, Tensor, Tensor> truncate_scale(const Tensor& values,
                                                           const Tensor& vectors,
                                                           const Tensor& atol, const Tensor& rtol,
                                                           int64_t gram_count) {
    constexpr const char* kFunction = "truncate_scale";
    require(values.dim() == 2, kFunction, "values", -1, "have two dimensions", values.dim());
    require(vectors.dim() == 3, kFunction, "vectors", -1, "have three dimensions", vectors.dim());
    const int64_t batch = values.size(0), count = vectors.size(1), width = values.size(1);
    require(width > 0 || batch == 0, kFunction, "values", -1, "have columns", width);
    require_sizes(kFunction, "values", values, {batch, width}, values);
    require(count > 0 || batch == 0, kFunction, "vectors", -1, "have rows", count);
    require_sizes(kFunction, "vectors", vectors, {batch, count, width}, values,
                  aoti_torch_dtype_float64(), false);
    require_sizes(kFunction, "atol", atol, {batch}, values);
    require_sizes(kFunction, "rtol", rtol, {batch}, values);
    require(gram_count >= 0, kFunction, "gram_count", -1, "be 0 or more", gram_count);
    const Tensor scaled = empty_beside(values, {batch, count, width});
    const Tensor rank = empty_beside(values, {batch}, ScalarType::Long);
    const Tensor rcond = empty_beside(values, {batch});
    if (vectors.numel() > 0) {
      const Tensor inverses = empty_beside(values, {batch, width});
      Kernels::truncate({.values = doubles(values),
                         .vectors = doubles(vectors),
                         .atol = doubles(atol),
                         .rtol = doubles(rtol),
                         .batch = batch,
                         .count = count,
                         .width = width,
                         .batch_stride = vectors.stride(0),
                         .row_stride = vectors.stride(1),
                         .column_stride = vectors.stride(2),
                         .gram_count = gram_count,
                         .inverses = doubles(inverses),
                         .scaled = doubles(scaled),
                         .rank = static_cast<int64_t*>(rank.data_ptr()),
                         .rcond = doubles(rcond)},
                        values.get_device());
    }
    return {scaled, rank, rcond};
  }
};

}  // namespace fusedstep
