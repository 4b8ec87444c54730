// The inverse of the Cholesky factor on NVIDIA GPUs: cusolverDnDpotrfBatched, cublasDtrsmBatched.
#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/decompositions.h"
#include "csrc/cuda/memory.h"
#include "csrc/cuda/solver_handles.h"
#include "csrc/cuda/solver_ops.h"
#include "csrc/cuda/stream.h"
#include "kernels/cuda/unit_matrices.h"

namespace fusedstep::cuda {

// What NVIDIA recommends for a GPU of compute capability 9 or more. A handle's own memory would be
// shared by all graphs that were captured with it.
constexpr int64_t kCublasWorkspace = int64_t{32} << 20;

// Column by column, G is Uᵀ U with U = Lᵀ, and U⁻¹, the solution of U X = I, is L⁻¹ row by row.
std::tuple<Tensor, Tensor> inverse_of_cholesky_factor(const Tensor& G) {
  const int64_t rows = require_squares("inverse_of_cholesky_factor", "G", G);
  const int n = static_cast<int>(rows);
  const int32_t device = G.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const Tensor factors = packed_copy(G);
  const Tensor inverses = empty_beside(G, {G.size(0), rows, rows});
  const Tensor info = no_failures(G);
  if (G.numel() == 0) {
    return {inverses, info};  // potrfBatched is not safe with matrices of no size
  }
  const Tensor pointers = empty_beside(G, {2, G.size(0)}, ScalarType::Long);
  auto** const factor_at = static_cast<double**>(pointers.data_ptr());
  auto** const inverse_at = factor_at + G.size(0);
  check(unit_matrices({.rows = rows,
                       .count = G.size(0),
                       .factors = doubles(factors),
                       .units = doubles(inverses),
                       .factor_at = factor_at,
                       .unit_at = inverse_at},
                      stream),
        "launching the unit matrices");
  const Tensor workspace = empty_beside(G, {kCublasWorkspace}, ScalarType::Byte);
  const SolverHandles handles(device, stream);
  FUSEDSTEP_SOLVE(cublasSetWorkspace_v2, handles->cublas, workspace.data_ptr(), kCublasWorkspace);
  in_pieces(G.size(0), rows * rows, [&](int64_t first, int64_t matrices) {
    const int count = static_cast<int>(matrices);
    FUSEDSTEP_SOLVE(cusolverDnDpotrfBatched, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n,
                    factor_at + first, n, ints(info) + first, count);
    const double one = 1;
    FUSEDSTEP_SOLVE(cublasDtrsmBatched, handles->cublas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER,
                    CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, n, n, &one, factor_at + first, n,
                    inverse_at + first, n, count);
  });
  return {inverses, info};
}

}  // namespace fusedstep::cuda
