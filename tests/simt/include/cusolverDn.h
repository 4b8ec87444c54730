// Stands in for the part of cuSOLVER that csrc/cuda uses; tests/simt/torch/solvers.cpp computes.
#pragma once

#include <cublas_v2.h>

#include <cstdint>

#define CUSOLVER_VER_MAJOR 12
#define CUSOLVER_VERSION 12004

enum cusolverStatus_t {
  CUSOLVER_STATUS_SUCCESS = 0,
  CUSOLVER_STATUS_ALLOC_FAILED = 2,
  CUSOLVER_STATUS_INVALID_VALUE = 3,
};
enum cusolverEigMode_t { CUSOLVER_EIG_MODE_NOVECTOR, CUSOLVER_EIG_MODE_VECTOR };
enum cusolverDnFunction_t { CUSOLVERDN_SYEVBATCHED = 2 };
enum cusolverAlgMode_t { CUSOLVER_ALG_0, CUSOLVER_ALG_1 };

struct cusolverDnContext;
struct cusolverDnParams;
struct gesvdjInfo;
using cusolverDnHandle_t = cusolverDnContext*;
using cusolverDnParams_t = cusolverDnParams*;
using gesvdjInfo_t = gesvdjInfo*;

cusolverStatus_t cusolverGetVersion(int* version);
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle);
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle);
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream);
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params);
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params);
cusolverStatus_t cusolverDnSetAdvOptions(cusolverDnParams_t params, cusolverDnFunction_t function,
                                         cusolverAlgMode_t algorithm);
cusolverStatus_t cusolverDnCreateGesvdjInfo(gesvdjInfo_t* info);
cusolverStatus_t cusolverDnDestroyGesvdjInfo(gesvdjInfo_t info);

cusolverStatus_t cusolverDnDpotrf_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t fill,
                                             int n, double* A, int lda, int* elements);
cusolverStatus_t cusolverDnDpotrf(cusolverDnHandle_t handle, cublasFillMode_t fill, int n,
                                  double* A, int lda, double* work, int elements, int* info);
cusolverStatus_t cusolverDnDpotrfBatched(cusolverDnHandle_t handle, cublasFillMode_t fill, int n,
                                         double* A[], int lda, int* info, int count);

cusolverStatus_t cusolverDnXsyevBatched_bufferSize(
    cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t mode,
    cublasFillMode_t fill, int64_t n, cudaDataType type, const void* A, int64_t lda,
    cudaDataType type_of_values, const void* values, cudaDataType compute, std::size_t* on_device,
    std::size_t* on_host, int64_t count);
cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                        cusolverEigMode_t mode, cublasFillMode_t fill, int64_t n,
                                        cudaDataType type, void* A, int64_t lda,
                                        cudaDataType type_of_values, void* values,
                                        cudaDataType compute, void* work, std::size_t on_device,
                                        void* host_work, std::size_t on_host, int* info,
                                        int64_t count);

cusolverStatus_t cusolverDnDgesvdjBatched_bufferSize(cusolverDnHandle_t handle,
                                                     cusolverEigMode_t mode, int m, int n,
                                                     const double* A, int lda, const double* values,
                                                     const double* U, int ldu, const double* V,
                                                     int ldv, int* elements, gesvdjInfo_t params,
                                                     int count);
cusolverStatus_t cusolverDnDgesvdjBatched(cusolverDnHandle_t handle, cusolverEigMode_t mode, int m,
                                          int n, double* A, int lda, double* values, double* U,
                                          int ldu, double* V, int ldv, double* work, int elements,
                                          int* info, gesvdjInfo_t params, int count);
