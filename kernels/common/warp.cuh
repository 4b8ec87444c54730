// Work that is shared out warp by warp, and what the lanes of one fold into.
#pragma once

#include "kernels/common/launch.cuh"

namespace fusedstep::cuda {

// The warp's number over all blocks of a launch, and the blocks that have so many.
__device__ __forceinline__ int64_t warp_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
}

inline int64_t blocks_of_warps(int64_t warps) {
  constexpr int64_t kWarps = kThreads / kWarp;
  return (warps + kWarps - 1) / kWarps;
}

constexpr unsigned kEveryLane = 0xffffffffu;

// By halves: lane l takes lane l + 16, then l + 8, ... Lane 0 has the result.
template <typename T, typename F>
__device__ __forceinline__ T fold_to_first(T x, F&& combine) {
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    x = combine(x, __shfl_down_sync(kEveryLane, x, half));
  }
  return x;
}

// All lanes have it.
template <typename T, typename F>
__device__ __forceinline__ T fold_warp(T x, F&& combine) {
  return __shfl_sync(kEveryLane, fold_to_first(x, combine), 0);
}

template <typename T>
__device__ __forceinline__ T sum_of_warp(T x) {
  return fold_warp(x, [](T a, T b) { return a + b; });
}

}  // namespace fusedstep::cuda
