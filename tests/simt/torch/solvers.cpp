// Stands in for cuBLAS and cuSOLVER, in plain doubles: refuses what they refuse, is wrong where
// they are wrong, runs in order on its stream, and counts as forbidden in a capture where they
// allocate.
#include "tests/simt/torch/solvers.h"

#include <cublas_v2.h>
#include <cusolverDn.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "csrc/cuda/solver_library.h"
#include "tests/simt/torch/lapack.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
};
struct cusolverDnContext {
  cudaStream_t stream = nullptr;
};
struct cusolverDnParams {
  cusolverAlgMode_t algorithm = CUSOLVER_ALG_0;
};
struct gesvdjInfo {};

namespace {

using lapack::Matrix;
using solvers::settings;

constexpr int64_t kIntMax = 2147483647;

cublasStatus_t blas(cudaError_t error) {
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
cusolverStatus_t solver(cudaError_t error) {
  return error == cudaSuccess ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_ALLOC_FAILED;
}

template <typename T>
cudaError_t create(const char* call, T** made) {
  if (const cudaError_t error = simt::device.begin_unsafe(call)) return error;
  *made = new T;
  ++settings.handles;
  return cudaSuccess;
}

template <typename T>
cudaError_t destroy(T* made) {
  delete made;
  --settings.handles;
  return simt::device.begin_unsafe("destroy");
}

// For every matrix of a call, on the stream.
template <typename Solve>
void run(cudaStream_t stream, int64_t count, Solve solve) {
  ++settings.calls;
  simt::run_on(stream, 1, [=] {
    for (int64_t i = 0; i < count; ++i) solve(i);
  });
}

// What a routine that did not converge leaves behind.
int give_up(int64_t n, double* first, int64_t elements) {
  std::fill_n(first, elements, std::nan(""));
  return static_cast<int>(n) + 1;
}

}  // namespace

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  return blas(create("cublasCreate", handle));
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) { return blas(destroy(handle)); }
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, std::size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_ALLOC_FAILED ? "CUBLAS_STATUS_ALLOC_FAILED" : "another status";
}

// Solves against n columns, of the one matrix that csrc/cuda knows: upper, on the left.
template <typename Solve>
static cublasStatus_t trsm(const char* call, cublasHandle_t handle, cublasSideMode_t side,
                           cublasFillMode_t fill, cublasOperation_t operation,
                           cublasDiagType_t diagonal, int m, int n, const double* alpha, int lda,
                           int ldb, int count, Solve solve) {
  const bool known = side == CUBLAS_SIDE_LEFT && fill == CUBLAS_FILL_MODE_UPPER &&
                     operation == CUBLAS_OP_N && diagonal == CUBLAS_DIAG_NON_UNIT && *alpha == 1;
  if (!known || m != n || lda < m || ldb < m || count < 0) return CUBLAS_STATUS_INVALID_VALUE;
  if (const cudaError_t error = simt::device.begin(call)) return blas(error);
  run(handle->stream, count, solve);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDtrsm_v2(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill,
                              cublasOperation_t operation, cublasDiagType_t diagonal, int m, int n,
                              const double* alpha, const double* A, int lda, double* B, int ldb) {
  return trsm("cublasDtrsm", handle, side, fill, operation, diagonal, m, n, alpha, lda, ldb, 1,
              [=](int64_t) { lapack::solve_upper({const_cast<double*>(A), n}, {B, n}); });
}

cublasStatus_t cublasDtrsmBatched(cublasHandle_t handle, cublasSideMode_t side,
                                  cublasFillMode_t fill, cublasOperation_t operation,
                                  cublasDiagType_t diagonal, int m, int n, const double* alpha,
                                  const double* const A[], int lda, double* const B[], int ldb,
                                  int count) {
  return trsm("cublasDtrsmBatched", handle, side, fill, operation, diagonal, m, n, alpha, lda, ldb,
              count,
              [=](int64_t i) { lapack::solve_upper({const_cast<double*>(A[i]), n}, {B[i], n}); });
}

cusolverStatus_t cusolverGetVersion(int* version) {
  *version = CUSOLVER_VERSION;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  return solver(create("cusolverDnCreate", handle));
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) { return solver(destroy(handle)); }
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params) {
  return solver(create("cusolverDnCreateParams", params));
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params) {
  return solver(destroy(params));
}
cusolverStatus_t cusolverDnSetAdvOptions(cusolverDnParams_t params, cusolverDnFunction_t,
                                         cusolverAlgMode_t algorithm) {
  params->algorithm = algorithm;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateGesvdjInfo(gesvdjInfo_t* info) {
  return solver(create("cusolverDnCreateGesvdjInfo", info));
}
cusolverStatus_t cusolverDnDestroyGesvdjInfo(gesvdjInfo_t info) { return solver(destroy(info)); }

cusolverStatus_t cusolverDnDpotrf_bufferSize(cusolverDnHandle_t, cublasFillMode_t fill, int n,
                                             double*, int lda, int* elements) {
  if (fill != CUBLAS_FILL_MODE_UPPER || n < 1 || lda < n) return CUSOLVER_STATUS_INVALID_VALUE;
  *elements = n;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDpotrf(cusolverDnHandle_t handle, cublasFillMode_t fill, int n,
                                  double* A, int lda, double* work, int elements, int* info) {
  if (fill != CUBLAS_FILL_MODE_UPPER || n < 1 || lda < n || elements < n || work == nullptr) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  if (const cudaError_t error = simt::device.begin("cusolverDnDpotrf")) return solver(error);
  run(handle->stream, 1, [=](int64_t) { *info = lapack::cholesky({A, n}); });
  return CUSOLVER_STATUS_SUCCESS;
}

// The real one is not safe with matrices of no size; this one refuses them.
cusolverStatus_t cusolverDnDpotrfBatched(cusolverDnHandle_t handle, cublasFillMode_t fill, int n,
                                         double* A[], int lda, int* info, int count) {
  if (fill != CUBLAS_FILL_MODE_UPPER || n < 1 || lda < n || count < 1) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  if (const cudaError_t error = simt::device.begin("cusolverDnDpotrfBatched")) return solver(error);
  run(handle->stream, count, [=](int64_t i) { info[i] = lapack::cholesky({A[i], n}); });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevBatched_bufferSize(cusolverDnHandle_t, cusolverDnParams_t,
                                                   cusolverEigMode_t mode, cublasFillMode_t fill,
                                                   int64_t n, cudaDataType type, const void*,
                                                   int64_t lda, cudaDataType type_of_values,
                                                   const void*, cudaDataType compute,
                                                   std::size_t* on_device, std::size_t* on_host,
                                                   int64_t count) {
  const bool known = mode == CUSOLVER_EIG_MODE_VECTOR && fill == CUBLAS_FILL_MODE_UPPER &&
                     type == CUDA_R_64F && type_of_values == CUDA_R_64F && compute == CUDA_R_64F;
  if (!known || n < 1 || lda < n || count < 1 || count >= 32768 || n * lda > kIntMax / count) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *on_device = static_cast<std::size_t>(8 * (n + count));
  *on_host = static_cast<std::size_t>(settings.host_work);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                        cusolverEigMode_t mode, cublasFillMode_t fill, int64_t n,
                                        cudaDataType type, void* A, int64_t lda,
                                        cudaDataType type_of_values, void* values,
                                        cudaDataType compute, void* work, std::size_t on_device,
                                        void* host_work, std::size_t on_host, int* info,
                                        int64_t count) {
  std::size_t bytes = 0, host_bytes = 0;
  const cusolverStatus_t status =
      cusolverDnXsyevBatched_bufferSize(handle, params, mode, fill, n, type, A, lda, type_of_values,
                                        values, compute, &bytes, &host_bytes, count);
  if (status != CUSOLVER_STATUS_SUCCESS || on_device < bytes || on_host < host_bytes) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  if (const cudaError_t error = simt::device.begin("cusolverDnXsyevBatched")) return solver(error);
  std::fill_n(static_cast<char*>(host_work), on_host, '\x5a');
  const int64_t gives_up = settings.gives_up;
  run(handle->stream, count, [=](int64_t i) {
    double* const matrix = static_cast<double*>(A) + i * n * n;
    const bool converged =
        lapack::eigh({matrix, n}, static_cast<double*>(values) + i * n) && i != gives_up;
    info[i] = converged ? 0 : give_up(n, matrix, n * n);
    // cuSOLVER 11.7.1 says nothing and has other vectors.
    auto* const bytes_at = static_cast<char*>(work);
    if (std::any_of(bytes_at, bytes_at + on_device, [](char byte) { return byte != 0; })) {
      std::fill_n(matrix, n * n, 1.0);
    }
    if (i == count - 1) std::fill_n(bytes_at, on_device, '\x5a');
  });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDgesvdjBatched_bufferSize(cusolverDnHandle_t, cusolverEigMode_t mode,
                                                     int m, int n, const double*, int lda,
                                                     const double*, const double*, int ldu,
                                                     const double*, int ldv, int* elements,
                                                     gesvdjInfo_t, int count) {
  const bool known = mode == CUSOLVER_EIG_MODE_VECTOR && m == n;
  if (!known || n < 1 || n > 32 || lda < m || ldu < m || ldv < n || count < 1) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *elements = n;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDgesvdjBatched(cusolverDnHandle_t handle, cusolverEigMode_t mode, int m,
                                          int n, double* A, int lda, double* values, double* U,
                                          int ldu, double* V, int ldv, double* work, int elements,
                                          int* info, gesvdjInfo_t params, int count) {
  int needed = 0;
  const cusolverStatus_t status = cusolverDnDgesvdjBatched_bufferSize(
      handle, mode, m, n, A, lda, values, U, ldu, V, ldv, &needed, params, count);
  if (status != CUSOLVER_STATUS_SUCCESS || elements < needed || work == nullptr) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  if (const cudaError_t error = simt::device.begin("cusolverDnDgesvdjBatched")) {
    return solver(error);
  }
  const int64_t gives_up = settings.gives_up;
  run(handle->stream, count, [=](int64_t i) {
    const int64_t at = i * n * n;
    const bool converged = lapack::svd({A + at, n}, values + i * n, {U + at, n}, {V + at, n});
    info[i] = converged && i != gives_up ? 0 : give_up(n, values + i * n, n);
  });
  return CUSOLVER_STATUS_SUCCESS;
}

// In place of csrc/cuda/solver_library.cpp, which opens the real ones.
const fusedstep::cuda::SolverLibrary& fusedstep::cuda::solver_library() {
  if (settings.missing) throw std::runtime_error("fusedstep: no libcusolver.so.12: not here");
  static const SolverLibrary library = [] {
    SolverLibrary standing_in;
#define FUSEDSTEP_STAND_IN(name) standing_in.name = ::name;
    FUSEDSTEP_CUBLAS_FUNCTIONS(FUSEDSTEP_STAND_IN)
    FUSEDSTEP_CUSOLVER_FUNCTIONS(FUSEDSTEP_STAND_IN)
#undef FUSEDSTEP_STAND_IN
    return standing_in;
  }();
  return library;
}
