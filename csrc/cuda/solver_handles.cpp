// The pool of handles of cuBLAS and cuSOLVER, and the check of their answers.
#include "csrc/cuda/solver_handles.h"

#include <iterator>
#include <stdexcept>

#include "csrc/cuda/memory.h"

namespace fusedstep::cuda {
namespace {

Pool<Handles>& pool() {
  static Pool<Handles>& pool = *new Pool<Handles>;
  return pool;
}

std::string name_of(cusolverStatus_t status) {
  static constexpr const char* kNames[] = {
      "SUCCESS",          "NOT_INITIALIZED", "ALLOC_FAILED",
      "INVALID_VALUE",    "ARCH_MISMATCH",   "MAPPING_ERROR",
      "EXECUTION_FAILED", "INTERNAL_ERROR",  "MATRIX_TYPE_NOT_SUPPORTED",
      "NOT_SUPPORTED"};
  const auto code = static_cast<size_t>(status);
  const std::string name = code < std::size(kNames) ? kNames[code] : std::to_string(code);
  return "CUSOLVER_STATUS_" + name;
}

[[noreturn]] void fail(const char* call, const std::string& status) {
  throw std::runtime_error(std::string("fusedstep: ") + call + " failed: " + status);
}

}  // namespace

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(call, solver_library().cublasGetStatusName(status));
  }
}

void check(cusolverStatus_t status, const char* call) {
  if (status != CUSOLVER_STATUS_SUCCESS) {
    fail(call, name_of(status));
  }
}

// Delegates to the empty constructor: if a call fails, the destructor frees what was created. The
// calls allocate on the device, which a capture forbids unless it is relaxed.
Handles::Handles() : Handles(Empty{}) {
  RelaxedCapture relaxed;
  FUSEDSTEP_SOLVE(cublasCreate_v2, &cublas);
  FUSEDSTEP_SOLVE(cusolverDnCreate, &cusolver);
  FUSEDSTEP_SOLVE(cusolverDnCreateParams, &eigh);
#if CUSOLVER_VERSION >= 12000  // before CUDA 13 there is nothing to choose
  // One algorithm, and so one accuracy, for matrices of every size.
  FUSEDSTEP_SOLVE(cusolverDnSetAdvOptions, eigh, CUSOLVERDN_SYEVBATCHED, CUSOLVER_ALG_1);
#endif
  FUSEDSTEP_SOLVE(cusolverDnCreateGesvdjInfo, &svd);
}

Handles::~Handles() {
  RelaxedCapture relaxed;
  if (svd != nullptr) {
    (void)library.cusolverDnDestroyGesvdjInfo(svd);
  }
  if (eigh != nullptr) {
    (void)library.cusolverDnDestroyParams(eigh);
  }
  if (cusolver != nullptr) {
    (void)library.cusolverDnDestroy(cusolver);
  }
  if (cublas != nullptr) {
    (void)library.cublasDestroy_v2(cublas);
  }
}

SolverHandles::SolverHandles(int32_t device, cudaStream_t stream)
    : key_(device, stream), handles_(pool().take(key_)) {
  if (handles_ == nullptr) {
    handles_ = std::make_unique<Handles>();
  }
  // Every time: another stream may have the address of a destroyed one.
  FUSEDSTEP_SOLVE(cublasSetStream_v2, handles_->cublas, stream);
  FUSEDSTEP_SOLVE(cusolverDnSetStream, handles_->cusolver, stream);
}

SolverHandles::~SolverHandles() { pool().give_back(key_, std::move(handles_)); }

}  // namespace fusedstep::cuda
