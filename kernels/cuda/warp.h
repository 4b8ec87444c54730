// Work that is shared out warp by warp, and what the lanes of one fold into.
#pragma once

#include "kernels/cuda/launch.h"

namespace fusedstep::cuda {

// The warp's number over all blocks of a launch, and the blocks that have so many.
__device__ __forceinline__ int64_t warp_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
}

inline int64_t blocks_of_warps(int64_t warps) {
  constexpr int64_t kWarps = kThreads / kWarp;
  return (warps + kWarps - 1) / kWarps;
}

// By halves: lane l takes lane l + 16, then l + 8, ... Lane 0 has the result, which all get.
template <typename T, typename F>
__device__ __forceinline__ T fold_warp(T x, F&& combine) {
  constexpr unsigned kAll = 0xffffffffu;
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    x = combine(x, __shfl_down_sync(kAll, x, half));
  }
  return __shfl_sync(kAll, x, 0);
}

}  // namespace fusedstep::cuda
