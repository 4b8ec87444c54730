// The proofs of full rank on the GPU: a warp takes a row, then a matrix; a lane of a sum is a
// thread.
#include "kernels/cuda/certificate.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace fusedstep::cuda {
namespace {

static_assert(kCertificateLanes == kWarp);

__device__ double sum_of_squares(const double* x, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) {
    sum += x[i] * x[i];
  }
  return fold_warp(sum, [](double a, double b) { return a + b; });
}

__global__ void __launch_bounds__(kThreads) sum_squares_kernel(const Certificates c) {
  const int64_t at = warp_of_grid();
  if (at >= c.batch * c.width) {
    return;
  }
  const int64_t row = at % c.width;
  const double* of_gram = c.gram + at * c.width;
  const double left = sum_of_squares(of_gram, row);
  const double inverse = sum_of_squares(c.inverse + at * c.width, c.width);
  if (threadIdx.x % kWarp == 0) {
    c.gram_rows[at] = certified_row(left, of_gram[row]);
    c.inverse_rows[at] = inverse;
  }
}

__global__ void __launch_bounds__(kThreads) certify_kernel(const Certificates c) {
  const int64_t matrix = warp_of_grid();
  if (matrix >= c.batch) {
    return;
  }
  double gram = 0, inverse = 0, trace = 0;
  for (int64_t i = threadIdx.x % kWarp; i < c.width; i += kWarp) {
    const int64_t row = matrix * c.width + i;
    gram += c.gram_rows[row];
    inverse += c.inverse_rows[row];
    trace += c.gram[row * c.width + i];
  }
  const auto add = [](double a, double b) { return a + b; };
  gram = fold_warp(gram, add);
  inverse = fold_warp(inverse, add);
  trace = fold_warp(trace, add);
  if (threadIdx.x % kWarp == 0) {
    fusedstep::certify(c, matrix, gram, inverse, trace);
  }
}

}  // namespace

cudaError_t certify(const Certificates& c, cudaStream_t stream) {
  const cudaError_t summed =
      launch(sum_squares_kernel, blocks_of_warps(c.batch * c.width), stream, c);
  return summed == cudaSuccess ? launch(certify_kernel, blocks_of_warps(c.batch), stream, c)
                               : summed;
}

}  // namespace fusedstep::cuda
