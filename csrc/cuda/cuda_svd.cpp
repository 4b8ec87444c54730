// Singular values and vectors of small square matrices on NVIDIA GPUs: cusolverDnDgesvdjBatched.
#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/decompositions.h"
#include "csrc/cuda/solver_handles.h"
#include "csrc/cuda/solver_ops.h"
#include "csrc/cuda/stream.h"

namespace fusedstep::cuda {

// With Rᵀ = V σ Uᵀ, what is packed column by column, V first, is Vᵀ and Uᵀ row by row.
std::tuple<Tensor, Tensor, Tensor, Tensor> svd(const Tensor& R) {
  constexpr int64_t kMostColumns = 32;  // the routine's own limit
  const int64_t rows = require_squares("svd", "R", R);
  require(rows <= kMostColumns, "svd", "R", -1, "have at most 32 rows", rows);
  const int k = static_cast<int>(rows);
  const torch::stable::accelerator::DeviceGuard guard(R.get_device());
  const Tensor transposed = packed_copy(R);
  const Tensor values = empty_beside(R, {R.size(0), k});
  const Tensor right = empty_beside(R, {R.size(0), k, k});
  const Tensor left = empty_beside(R, {R.size(0), k, k});
  const Tensor info = no_failures(R);
  const SolverHandles handles(R.get_device(), current_stream(R.get_device()));
  in_pieces(R.size(0), rows * rows, [&](int64_t first, int64_t matrices) {
    const int64_t at = first * rows * rows;
    const int count = static_cast<int>(matrices);
    const auto solve = [&](auto function, auto... workspace) {
      return function(handles->cusolver, CUSOLVER_EIG_MODE_VECTOR, k, k, doubles(transposed) + at,
                      k, doubles(values) + first * k, doubles(right) + at, k, doubles(left) + at, k,
                      workspace..., handles->svd, count);
    };
    int elements = 0;
    check(solve(handles->library.cusolverDnDgesvdjBatched_bufferSize, &elements),
          "cusolverDnDgesvdjBatched_bufferSize");
    const Tensor work = empty_beside(R, {elements});
    check(solve(handles->library.cusolverDnDgesvdjBatched, doubles(work), elements,
                ints(info) + first),
          "cusolverDnDgesvdjBatched");
  });
  return {torch::stable::transpose(left, 1, 2), values, right, info};
}

}  // namespace fusedstep::cuda
