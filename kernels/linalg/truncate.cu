// Truncation of singular values on the GPU: a warp takes the values of a matrix, then a row of
// vectors.
#include "kernels/common/warp.cuh"
#include "kernels/linalg/truncate.cuh"

namespace fusedstep::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) truncate_kernel(const Truncation t) {
  const int64_t matrix = warp_of_grid();
  if (matrix >= t.batch) {
    return;
  }
  const int lane = threadIdx.x % kWarp;
  const double* values = t.values + matrix * t.width;
  double largest = 0;
  for (int64_t i = lane; i < t.width; i += kWarp) {
    largest = nan_max(largest, size_of(t, values[i]));
  }
  largest = fold_warp(largest, [](double a, double b) { return nan_max(a, b); });
  const double threshold = threshold_of(t, matrix, largest);
  double smallest = largest;
  int64_t rank = 0;
  for (int64_t i = lane; i < t.width; i += kWarp) {
    const double size = size_of(t, values[i]);
    t.inverses[matrix * t.width + i] = inverse_of(t, values[i], threshold);
    if (size > threshold) {
      ++rank;
      smallest = size < smallest ? size : smallest;
    }
  }
  rank = sum_of_warp(rank);
  smallest = fold_warp(smallest, [](double a, double b) { return a < b ? a : b; });
  if (lane == 0) {
    t.rank[matrix] = rank;
    t.rcond[matrix] = rank > 0 ? smallest / largest : 0;
  }
}

__global__ void __launch_bounds__(kThreads) scale_rows_kernel(const Truncation t) {
  const int64_t at = warp_of_grid();
  if (at >= t.batch * t.count) {
    return;
  }
  const int64_t matrix = at / t.count;
  const double* from = t.vectors + matrix * t.batch_stride + at % t.count * t.row_stride;
  for (int64_t i = threadIdx.x % kWarp; i < t.width; i += kWarp) {
    t.scaled[at * t.width + i] = from[i * t.column_stride] * t.inverses[matrix * t.width + i];
  }
}

}  // namespace

cudaError_t truncate(const Truncation& t, cudaStream_t stream) {
  const cudaError_t truncated = launch(truncate_kernel, blocks_of_warps(t.batch), stream, t);
  const int64_t rows = t.batch * t.count;
  return truncated == cudaSuccess ? launch(scale_rows_kernel, blocks_of_warps(rows), stream, t)
                                  : truncated;
}

}  // namespace fusedstep::cuda
