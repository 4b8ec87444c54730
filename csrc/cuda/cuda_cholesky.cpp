// The inverse of the Cholesky factor on NVIDIA GPUs: cusolverDnDpotrfBatched, cublasDtrsmBatched,
// and for a few larger matrices the calls that take one.
#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/decompositions.h"
#include "csrc/cuda/memory.h"
#include "csrc/cuda/solver_handles.h"
#include "csrc/cuda/solver_ops.h"
#include "csrc/cuda/stream.h"
#include "kernels/linalg/unit_matrices.cuh"

namespace fusedstep::cuda {
namespace {

// Where the batched calls lose, as torch found for its triangular solves (triangular_solve_kernel
// in aten/src/ATen/native/cuda/linalg/BatchLinearAlgebra.cpp).
constexpr int64_t kFew = 8;
constexpr int kLarge = 64;

// What NVIDIA recommends for a GPU of compute capability 9 or more. A handle's own memory would be
// shared by all graphs that were captured with it.
constexpr int64_t kCublasWorkspace = int64_t{32} << 20;

constexpr double kOne = 1;

// Column by column, G is Uᵀ U with U = Lᵀ, and U⁻¹, the solution of U X = I, is L⁻¹ row by row.

void one_by_one(const SolverHandles& handles, const UnitMatrices& matrices, const Tensor& info) {
  const int n = static_cast<int>(matrices.rows);
  int elements = 0;
  FUSEDSTEP_SOLVE(cusolverDnDpotrf_bufferSize, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n,
                  matrices.factors, n, &elements);
  const Tensor work = empty_beside(info, {elements});
  for (int64_t i = 0; i < matrices.count; ++i) {
    double* const factor = matrices.factors + i * n * n;
    FUSEDSTEP_SOLVE(cusolverDnDpotrf, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n, factor, n,
                    doubles(work), elements, ints(info) + i);
    FUSEDSTEP_SOLVE(cublasDtrsm_v2, handles->cublas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER,
                    CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, n, n, &kOne, factor, n,
                    matrices.units + i * n * n, n);
  }
}

void together(const SolverHandles& handles, const UnitMatrices& matrices, const Tensor& info) {
  const int n = static_cast<int>(matrices.rows);
  in_pieces(matrices.count, matrices.rows * matrices.rows, [&](int64_t first, int64_t piece) {
    const int count = static_cast<int>(piece);
    FUSEDSTEP_SOLVE(cusolverDnDpotrfBatched, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n,
                    matrices.factor_at + first, n, ints(info) + first, count);
    FUSEDSTEP_SOLVE(cublasDtrsmBatched, handles->cublas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER,
                    CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, n, n, &kOne, matrices.factor_at + first, n,
                    matrices.unit_at + first, n, count);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> inverse_of_cholesky_factor(const Tensor& G) {
  const int64_t rows = require_squares("inverse_of_cholesky_factor", "G", G);
  const int64_t count = G.size(0);
  const int32_t device = G.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const Tensor factors = packed_copy(G);
  const Tensor inverses = empty_beside(G, {count, rows, rows});
  const Tensor info = no_failures(G);
  if (G.numel() == 0) {
    return {inverses, info};  // potrfBatched is not safe with matrices of no size
  }
  const Tensor addresses = empty_beside(G, {2, count}, ScalarType::Long);
  auto** const at = static_cast<double**>(addresses.data_ptr());
  const UnitMatrices matrices{.rows = rows,
                              .count = count,
                              .factors = doubles(factors),
                              .units = doubles(inverses),
                              .factor_at = at,
                              .unit_at = at + count};
  check(unit_matrices(matrices, stream), "launching the unit matrices");
  const Tensor workspace = empty_beside(G, {kCublasWorkspace}, ScalarType::Byte);
  const SolverHandles handles(device, stream);
  FUSEDSTEP_SOLVE(cublasSetWorkspace_v2, handles->cublas, workspace.data_ptr(), kCublasWorkspace);
  (count <= kFew && rows >= kLarge ? one_by_one : together)(handles, matrices, info);
  return {inverses, info};
}

}  // namespace fusedstep::cuda
