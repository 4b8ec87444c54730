// Gram matrices of rows as an op, for either device: arguments checked, kernels run.
#pragma once

#include "csrc/checks.h"
#include "kernels/linalg/gram.h"

namespace fusedstep {

// `Kernels::run(rows, gram)` adds to `gram`; there are rows and columns.
template <typename Kernels>
struct GramOps {
  static void gram_(const Tensor& gram, const Tensor& rows) {
    constexpr const char* kFunction = "gram_";
    const int64_t dim = gram.dim();
    require(dtype_of(gram) == Dtype::kFloat64 && is_strided(gram) && (dim == 2 || dim == 3) &&
                gram.size(dim - 2) == gram.size(dim - 1) && is_contiguous(gram),
            kFunction, "gram", -1, "be contiguous squares of float64", "something else");
    const Dtype dtype = require_dtype(kFunction, "rows", -1, rows);
    require(dtype != Dtype::kFloat64, kFunction, "rows", -1, "be narrower than float64", "float64");
    require(rows.dim() == dim, kFunction, "rows", -1, "have as many dimensions as gram",
            rows.dim());
    require(dim == 2 || rows.size(0) == gram.size(0), kFunction, "rows", -1,
            "have as many matrices as gram", rows.size(0));
    const auto dims = dimensions(rows);
    const Dimension across = dims[dim - 2], along = dims[dim - 1];
    require(along.size == gram.size(dim - 1), kFunction, "rows", -1, "be as wide as gram",
            along.size);
    const bool by_row = along.size < 2 || along.stride == 1;
    require(by_row || across.size < 2 || across.stride == 1, kFunction, "rows", -1,
            "have neighbouring elements in memory along rows or columns", along.stride);
    require_same_device(kFunction, "rows", -1, rows, gram);
    if (rows.numel() == 0) {
      return;
    }
    Kernels::run({.rows = rows.data_ptr(),
                  .dtype = dtype,
                  .by_column = !by_row,
                  .batch = dim == 2 ? 1 : dims[0].size,
                  .count = across.size,
                  .width = along.size,
                  .batch_stride = dim == 2 ? 0 : dims[0].stride,
                  .stride = by_row ? across.stride : along.stride,
                  .gram = static_cast<double*>(gram.data_ptr())},
                 gram);
  }
};

}  // namespace fusedstep
