// Launching a kernel from a test, under one seed or under many.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/macros.h"

namespace simt {

template <typename... Parameters, typename... Arguments>
void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (status != cudaSuccess) throw Error(cudaGetErrorString(status));
}

template <typename F>
void for_seeds(int count, F&& f) {
  for (int seed = 0; seed < count; ++seed) {
    configure({.seed = static_cast<std::uint64_t>(seed)});
    f(seed);
  }
}

}  // namespace simt
