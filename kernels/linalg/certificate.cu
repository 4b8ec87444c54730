// The proofs of full rank on the GPU: a warp takes a strip, then a matrix; a lane of a sum is
// a thread.
#include "kernels/common/launch.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/linalg/certificate.cuh"

namespace fusedstep::cuda {
namespace {

static_assert(kCertificateLanes == kWarp && kCertificateRows == kWarp);

__device__ void add_squares(const double* x, int64_t count, double& sum) {
  for (int64_t j = threadIdx.x % kWarp; j < count; j += kWarp) {
    sum += x[j] * x[j];
  }
}

__global__ void __launch_bounds__(kThreads) sum_strips_kernel(const Certificates c) {
  const int64_t at = warp_of_grid(), strips = strips_of(c.width);
  if (at >= c.batch * strips) {
    return;
  }
  const int lane = threadIdx.x % kWarp;
  const int64_t first = at % strips * kCertificateRows, matrix = at / strips * c.width * c.width;
  const int64_t last = first + kCertificateRows < c.width ? first + kCertificateRows : c.width;
  double left = 0, inverse = 0;
  for (int64_t i = first; i < last; ++i) {
    add_squares(c.gram + matrix + i * c.width, i, left);
    add_squares(c.inverse + matrix + i * c.width, c.width, inverse);
  }
  const bool has_row = first + lane < last;
  const double diagonal = has_row ? c.gram[matrix + (first + lane) * (c.width + 1)] : 0;
  left = sum_of_warp(left);
  inverse = sum_of_warp(inverse);
  const double squares = sum_of_warp(diagonal * diagonal), trace = sum_of_warp(diagonal);
  if (lane == 0) {
    c.gram_strips[at] = 2 * left + squares;
    c.inverse_strips[at] = inverse;
    c.traces[at] = trace;
  }
}

__global__ void __launch_bounds__(kThreads) certify_kernel(const Certificates c) {
  const int64_t matrix = warp_of_grid(), strips = strips_of(c.width);
  if (matrix >= c.batch) {
    return;
  }
  double gram = 0, inverse = 0, trace = 0;
  for (int64_t s = threadIdx.x % kWarp; s < strips; s += kWarp) {
    gram += c.gram_strips[matrix * strips + s];
    inverse += c.inverse_strips[matrix * strips + s];
    trace += c.traces[matrix * strips + s];
  }
  gram = sum_of_warp(gram);
  inverse = sum_of_warp(inverse);
  trace = sum_of_warp(trace);
  if (threadIdx.x % kWarp == 0) {
    fusedstep::certify(c, matrix, gram, inverse, trace);
  }
}

}  // namespace

cudaError_t certify(const Certificates& c, cudaStream_t stream) {
  const cudaError_t summed =
      launch(sum_strips_kernel, blocks_of_warps(c.batch * strips_of(c.width)), stream, c);
  return summed == cudaSuccess ? launch(certify_kernel, blocks_of_warps(c.batch), stream, c)
                               : summed;
}

}  // namespace fusedstep::cuda
