// What every kernel launch shares: the block size and the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fusedstep::cuda {

// One warp is one strip of the norm (kernels/optim/norm.h), so a block has one thread a lane.
constexpr int kThreads = 256;
constexpr int kWarp = 32;

// A plain function call instead of <<<>>>, so that the SIMT harness can stand in for CUDA.
template <int threads = kThreads, typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, cudaStream_t stream, Args... args) {
  if (blocks > INT32_MAX) {
    return cudaErrorInvalidConfiguration;  // as CUDA says, which would see the low 32 bits alone
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

}  // namespace fusedstep::cuda
