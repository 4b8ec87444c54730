// The op gram_: Gram matrices of rows.
#include <torch/csrc/stable/library.h>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

void gram_(const Tensor& gram, const Tensor& rows) {
  const Arg gram_arg("gram_", "gram", gram), rows_arg("gram_", "rows", rows);
  const int64_t dim = gram.dim();
  gram_arg.is({ScalarType::Double})
      .contiguous()
      .must(dim == 2 || dim == 3, "have 2 or 3 dimensions");
  gram_arg.must(gram.size(dim - 2) == gram.size(dim - 1), "be square");
  rows_arg.is({ScalarType::Float, ScalarType::BFloat16, ScalarType::Half})
      .must(rows.dim() == dim, "have as many dimensions as gram")
      .must(dim == 2 || rows.size(0) == gram.size(0), "have as many matrices as gram")
      .must(rows.size(dim - 1) == gram.size(dim - 1), "be as wide as gram");
  const int64_t count = rows.size(dim - 2), width = rows.size(dim - 1);
  const bool by_row = has_dense_rows(rows);
  rows_arg
      .must(by_row || count < 2 || rows.stride(dim - 2) == 1,
            "have neighbouring elements in memory along rows or columns")
      .on_device_of(gram);
  if (rows.numel() == 0) {
    return;
  }
  Workspace workspace(gram);
  device_of(gram).gram({.rows = rows.data_ptr(),
                        .dtype = *dtype_of(rows),
                        .by_column = !by_row,
                        .batch = dim == 2 ? 1 : rows.size(0),
                        .count = count,
                        .width = width,
                        .batch_stride = dim == 2 ? 0 : rows.stride(0),
                        .stride = rows.stride(by_row ? dim - 2 : dim - 1),
                        .gram = data_of<double>(gram)},
                       workspace);
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Adds rowsᵀ rows to `gram` [k, k], for rows [n, k], or to each of [b, k, k] for [b, n, k], as
  // kernels/linalg/gram.h says. Of what is above the diagonals only some is written.
  m.def("gram_(Tensor(a!) gram, Tensor rows) -> ()");
}

FUSEDSTEP_IMPL(m) { m.impl("gram_", TORCH_BOX(&fusedstep::gram_)); }
