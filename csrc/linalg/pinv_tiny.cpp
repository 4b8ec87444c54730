// The op pinv_tiny: the pseudo-inverses of matrices of at most 32 rows and columns.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> pinv_tiny(const Tensor& A, const Tensor& atol,
                                                     const Tensor& rtol, bool jacobi) {
  constexpr const char* kFunction = "pinv_tiny";
  Arg(kFunction, "A", A)
      .is({ScalarType::Float, ScalarType::Double})
      .dims(3)
      .contiguous()
      .must(A.size(1) <= tiny::kLargest && A.size(2) <= tiny::kLargest,
            "have at most " + std::to_string(tiny::kLargest) + " rows and columns");
  const int64_t count = A.size(0), rows = A.size(1), columns = A.size(2);
  for (const auto& [argument, tensor] : {std::pair("atol", &atol), std::pair("rtol", &rtol)}) {
    Arg(kFunction, argument, *tensor).is({ScalarType::Double}).shape({count}).on_device_of(A);
  }
  const Tensor P = empty_on(A, {count, columns, rows}, A.scalar_type());
  Tensor rank = empty_on(A, {count}, ScalarType::Long);
  Tensor code = empty_on(A, {count}, ScalarType::Int);
  Tensor rcond = empty_on(A, {count});
  if (A.numel() == 0) {
    for (Tensor* facts : {&rank, &code, &rcond}) {
      torch::stable::zero_(*facts);
    }
    return {P, rank, code, rcond};
  }
  Workspace workspace(A);
  device_of(A).tiny_pinv({.A = A.data_ptr(),
                          .dtype = *dtype_of(A),
                          .rows = static_cast<int>(rows),
                          .columns = static_cast<int>(columns),
                          .count = count,
                          .atol = data_of<double>(atol),
                          .rtol = data_of<double>(rtol),
                          .atol_stride = atol.stride(0),
                          .rtol_stride = rtol.stride(0),
                          .jacobi = jacobi,
                          .P = P.data_ptr(),
                          .rank = data_of<int64_t>(rank),
                          .code = data_of<int32_t>(code),
                          .rcond = data_of<double>(rcond)},
                         workspace);
  return {P, rank, code, rcond};
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // The pseudo-inverses of A [b, m, n], m and n at most 32, contiguous float32 or float64, by
  // kernels/linalg/tiny_pinv.h; atol, rtol [b] float64. Returns P [b, n, m] and of each matrix the
  // rank (int64), the code of fusedstep.pinv (int32) and rcond (float64).
  m.def(
      "pinv_tiny(Tensor A, Tensor atol, Tensor rtol, bool jacobi) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

FUSEDSTEP_IMPL(m) { m.impl("pinv_tiny", TORCH_BOX(&fusedstep::pinv_tiny)); }
