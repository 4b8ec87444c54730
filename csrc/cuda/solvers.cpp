// The inverse of the Cholesky factor by cusolverDnDpotrfBatched and cublasDtrsmBatched, eigenvalues
// by cusolverDnXsyevBatched, singular values by cusolverDnDgesvdjBatched.
//
// A row-major matrix is the transpose of a column-major one, which is what the libraries know.
#include "csrc/cuda/solvers.h"

#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <vector>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/solver_handles.h"
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

void one_by_one(const SolverHandles& handles, const UnitMatrices& matrices, int32_t* info,
                Workspace& workspace) {
  const int n = static_cast<int>(matrices.rows);
  int elements = 0;
  FUSEDSTEP_SOLVE(cusolverDnDpotrf_bufferSize, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n,
                  matrices.factors, n, &elements);
  auto* const work = workspace.empty<double>(elements);
  for (int64_t i = 0; i < matrices.count; ++i) {
    double* const factor = matrices.factors + i * n * n;
    FUSEDSTEP_SOLVE(cusolverDnDpotrf, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n, factor, n, work,
                    elements, info + i);
    FUSEDSTEP_SOLVE(cublasDtrsm_v2, handles->cublas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER,
                    CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, n, n, &kOne, factor, n,
                    matrices.units + i * n * n, n);
  }
}

void together(const SolverHandles& handles, const UnitMatrices& matrices, int32_t* info) {
  const int n = static_cast<int>(matrices.rows);
  in_pieces(matrices.count, matrices.rows * matrices.rows, [&](int64_t first, int64_t piece) {
    const int count = static_cast<int>(piece);
    FUSEDSTEP_SOLVE(cusolverDnDpotrfBatched, handles->cusolver, CUBLAS_FILL_MODE_UPPER, n,
                    matrices.factor_at + first, n, info + first, count);
    FUSEDSTEP_SOLVE(cublasDtrsmBatched, handles->cublas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER,
                    CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, n, n, &kOne, matrices.factor_at + first, n,
                    matrices.unit_at + first, n, count);
  });
}

}  // namespace

void inverse_of_cholesky_factor(const Squares& G, double* inverses, Workspace& workspace,
                                cudaStream_t stream) {
  const UnitMatrices matrices{.rows = G.rows,
                              .count = G.count,
                              .factors = G.data,
                              .units = inverses,
                              .factor_at = workspace.empty<double*>(G.count),
                              .unit_at = workspace.empty<double*>(G.count)};
  check(unit_matrices(matrices, stream), "launching the unit matrices");
  auto* const for_cublas = workspace.empty<std::byte>(kCublasWorkspace);
  const SolverHandles handles(workspace.device(), stream);
  FUSEDSTEP_SOLVE(cublasSetWorkspace_v2, handles->cublas, for_cublas, kCublasWorkspace);
  if (G.count <= kFew && G.rows >= kLarge) {
    one_by_one(handles, matrices, G.info, workspace);
  } else {
    together(handles, matrices, G.info);
  }
}

// cuSOLVER promises nothing about graphs: memory of the host that it wants might be read again at
// every replay, when it is long gone. So a capture is refused then, before anything is computed.
void eigh(const Squares& A, double* values, Workspace& workspace, cudaStream_t stream) {
  const int64_t n = A.rows;
  const SolverHandles handles(workspace.device(), stream);
  // The upper triangle of the transpose is the lower one of A, as torch.linalg.eigh reads.
  const auto solve = [&](int64_t first, int64_t count, auto function, auto... buffers) {
    return function(handles->cusolver, handles->eigh, CUSOLVER_EIG_MODE_VECTOR,
                    CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, A.data + first * n * n, n, CUDA_R_64F,
                    values + first * n, CUDA_R_64F, buffers..., count);
  };
  struct Sizes {
    size_t on_device = 0, on_host = 0;
  };
  const auto sizes_of = [&](int64_t first, int64_t count) {
    Sizes sizes;
    check(solve(first, count, handles->library.cusolverDnXsyevBatched_bufferSize, &sizes.on_device,
                &sizes.on_host),
          "cusolverDnXsyevBatched_bufferSize");
    return sizes;
  };
  if (is_capturing(stream)) {
    in_pieces(A.count, n * n, [&](int64_t first, int64_t count) {
      const size_t on_host = sizes_of(first, count).on_host;
      STD_TORCH_CHECK(on_host == 0,
                      "eigh: A must need no host memory of cuSOLVER while a CUDA graph is "
                      "captured, got ",
                      on_host, " bytes for ", count, " matrices of ", n, " rows");
    });
  }
  in_pieces(A.count, n * n, [&](int64_t first, int64_t count) {
    const Sizes sizes = sizes_of(first, count);
    Workspace piece = workspace.part();
    // cuSOLVER 11.7.1 reads the old contents: without the zeros its vectors are wrong.
    auto* const work = piece.zeros<std::byte>(static_cast<int64_t>(sizes.on_device));
    std::vector<std::byte> host_work(sizes.on_host);  // until the call returns, as in torch
    check(solve(first, count, handles->library.cusolverDnXsyevBatched, work, sizes.on_device,
                host_work.data(), sizes.on_host, A.info + first),
          "cusolverDnXsyevBatched");
  });
}

// With Rᵀ = V σ Uᵀ, what is packed column by column, V first, is Vᵀ and Uᵀ row by row.
void svd(const Squares& R, double* U, double* values, double* Vh, Workspace& workspace,
         cudaStream_t stream) {
  const int k = static_cast<int>(R.rows);
  const SolverHandles handles(workspace.device(), stream);
  in_pieces(R.count, R.rows * R.rows, [&](int64_t first, int64_t matrices) {
    const int64_t at = first * R.rows * R.rows;
    const int count = static_cast<int>(matrices);
    const auto solve = [&](auto function, auto... buffers) {
      return function(handles->cusolver, CUSOLVER_EIG_MODE_VECTOR, k, k, R.data + at, k,
                      values + first * k, Vh + at, k, U + at, k, buffers..., handles->svd, count);
    };
    int elements = 0;
    check(solve(handles->library.cusolverDnDgesvdjBatched_bufferSize, &elements),
          "cusolverDnDgesvdjBatched_bufferSize");
    Workspace piece = workspace.part();
    check(solve(handles->library.cusolverDnDgesvdjBatched, piece.empty<double>(elements), elements,
                R.info + first),
          "cusolverDnDgesvdjBatched");
  });
}

}  // namespace fusedstep::cuda
