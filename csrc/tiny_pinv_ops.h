// The pseudo-inverses of tiny matrices as an op, for either device: arguments checked, kernels run.
#pragma once

#include <tuple>

#include "csrc/checks.h"
#include "csrc/empty.h"
#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep {

inline void require_tolerance(const char* argument, const Tensor& tensor, const Tensor& A) {
  constexpr const char* kFunction = "pinv_tiny";
  require(dtype_of(tensor) == Dtype::kFloat64 && is_strided(tensor) && tensor.dim() == 1, kFunction,
          argument, -1, "be float64 of one dimension", "something else");
  require(tensor.numel() == A.size(0), kFunction, argument, -1, "have a value for each matrix",
          tensor.numel());
  require_same_device(kFunction, argument, -1, tensor, A);
}

// `Kernels::run(problem, device)`.
template <typename Kernels>
struct TinyPinvOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> pinv_tiny(const Tensor& A, const Tensor& atol,
                                                              const Tensor& rtol, bool jacobi) {
    constexpr const char* kFunction = "pinv_tiny";
    const Dtype dtype = require_dtype(kFunction, "A", -1, A);
    require(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, kFunction, "A", -1,
            "be float32 or float64", "another dtype");
    require(A.dim() == 3 && is_contiguous(A), kFunction, "A", -1,
            "be contiguous and have three dimensions", A.dim());
    for (int64_t d = 1; d < 3; ++d) {
      require(A.size(d) <= tiny::kLargest, kFunction, "A", -1,
              "have at most 32 rows and 32 columns", A.size(d));
    }
    require_tolerance("atol", atol, A);
    require_tolerance("rtol", rtol, A);
    const int64_t count = A.size(0), rows = A.size(1), columns = A.size(2);
    Tensor P = empty_beside(A, {count, columns, rows}, A.scalar_type());
    Tensor rank = empty_beside(A, {count}, ScalarType::Long);
    Tensor code = empty_beside(A, {count}, ScalarType::Int);
    Tensor rcond = empty_beside(A, {count});
    if (A.numel() > 0) {
      Kernels::run({.A = A.data_ptr(),
                    .dtype = dtype,
                    .rows = static_cast<int>(rows),
                    .columns = static_cast<int>(columns),
                    .count = count,
                    .atol = static_cast<const double*>(atol.data_ptr()),
                    .rtol = static_cast<const double*>(rtol.data_ptr()),
                    .atol_stride = atol.stride(0),
                    .rtol_stride = rtol.stride(0),
                    .jacobi = jacobi,
                    .P = P.data_ptr(),
                    .rank = static_cast<int64_t*>(rank.data_ptr()),
                    .code = static_cast<int32_t*>(code.data_ptr()),
                    .rcond = static_cast<double*>(rcond.data_ptr())},
                   A.get_device());
    } else {
      for (Tensor* facts : {&rank, &code, &rcond}) {
        torch::stable::zero_(*facts);
      }
    }
    return {P, rank, code, rcond};
  }
};

}  // namespace fusedstep
