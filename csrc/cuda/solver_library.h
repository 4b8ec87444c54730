// cuBLAS and cuSOLVER, opened when an op first needs them and not linked: this module loads where
// they are missing, and wherever it lies it finds those that torch uses.
#pragma once

#include <cublas_v2.h>
#include <cusolverDn.h>

#include <string>

// The functions in use, by the names under which the libraries export them.
#define FUSEDSTEP_CUBLAS_FUNCTIONS(F) \
  F(cublasCreate_v2)                  \
  F(cublasDestroy_v2)                 \
  F(cublasSetStream_v2)               \
  F(cublasSetWorkspace_v2)            \
  F(cublasGetStatusName)              \
  F(cublasDtrsm_v2)                   \
  F(cublasDtrsmBatched)
#define FUSEDSTEP_CUSOLVER_FUNCTIONS(F)  \
  F(cusolverGetVersion)                  \
  F(cusolverDnCreate)                    \
  F(cusolverDnDestroy)                   \
  F(cusolverDnSetStream)                 \
  F(cusolverDnCreateParams)              \
  F(cusolverDnDestroyParams)             \
  F(cusolverDnSetAdvOptions)             \
  F(cusolverDnCreateGesvdjInfo)          \
  F(cusolverDnDestroyGesvdjInfo)         \
  F(cusolverDnDpotrf_bufferSize)         \
  F(cusolverDnDpotrf)                    \
  F(cusolverDnDpotrfBatched)             \
  F(cusolverDnXsyevBatched_bufferSize)   \
  F(cusolverDnXsyevBatched)              \
  F(cusolverDnDgesvdjBatched_bufferSize) \
  F(cusolverDnDgesvdjBatched)

namespace fusedstep::cuda {

struct SolverLibrary {
#define FUSEDSTEP_MEMBER(name) decltype(&::name) name = nullptr;
  FUSEDSTEP_CUBLAS_FUNCTIONS(FUSEDSTEP_MEMBER)
  FUSEDSTEP_CUSOLVER_FUNCTIONS(FUSEDSTEP_MEMBER)
#undef FUSEDSTEP_MEMBER
  std::string path;  // of cuSOLVER
};

// Raises, at every call, if a library or a function of it is missing.
const SolverLibrary& solver_library();

// Raise if a call failed, with its name and its status.
void check(cublasStatus_t status, const char* call);
void check(cusolverStatus_t status, const char* call);

}  // namespace fusedstep::cuda

#define FUSEDSTEP_SOLVE(function, ...) \
  ::fusedstep::cuda::check(::fusedstep::cuda::solver_library().function(__VA_ARGS__), #function)
