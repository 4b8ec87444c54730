// Stands in for CUDA's header: kernels that include it compile with any C++20 compiler and run in
// the SIMT harness.
#pragma once

#include <cstddef>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "simt/intrinsics.h"
#include "simt/runtime.h"
#include "simt/shared.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotReady = 600,
  cudaErrorStreamCaptureUnsupported = 900,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
};

#include "simt/device.h"  // needs cudaError_t

struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaPeekAtLastError() { return simt::device.last_error; }
inline cudaError_t cudaGetLastError() {
  return std::exchange(simt::device.last_error, cudaSuccess);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::options().multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

// Runs the kernel to its end at once, or keeps it for the graph being captured. Like CUDA it copies
// the arguments, converted to the kernel's parameters, and refuses an impossible configuration.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "older CUDA takes 4 KB of arguments");
  const dim3 grid = config->gridDim, block = config->blockDim;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || threads > 1024 || block.z > 64 || grid.y > 65535 || grid.z > 65535 ||
      grid.x > 0x7fffffffu) {
    return simt::device.fail(cudaErrorInvalidConfiguration);
  }
  if (const cudaError_t error = simt::device.begin("cudaLaunchKernelEx")) return error;
  // FUSEDSTEP_SHARED never needs dynamic shared memory.
  if (config->dynamicSmemBytes != 0) return simt::device.fail(cudaErrorInvalidValue);
  const std::tuple<std::remove_cv_t<Parameters>...> copies(
      static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  simt::run_on(config->stream, grid.x, [grid, block, kernel, copies] {
    simt::launch(grid, block, [&] { std::apply(kernel, copies); });
  });
  return cudaSuccess;
}
