// The addresses of matrices, and their unit matrices: one thread per element.
#include "kernels/common/launch.cuh"
#include "kernels/linalg/unit_matrices.cuh"

namespace fusedstep::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) unit_matrices_kernel(const UnitMatrices m) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t elements = m.rows * m.rows;
  const int64_t matrix = i / elements;
  if (matrix >= m.count) {
    return;
  }
  const int64_t element = i - matrix * elements;
  m.units[i] = element % (m.rows + 1) == 0 ? 1 : 0;
  if (element == 0) {
    m.factor_at[matrix] = m.factors + i;
    m.unit_at[matrix] = m.units + i;
  }
}

}  // namespace

cudaError_t unit_matrices(const UnitMatrices& m, cudaStream_t stream) {
  const int64_t elements = m.count * m.rows * m.rows;
  return launch(unit_matrices_kernel, (elements + kThreads - 1) / kThreads, stream, m);
}

}  // namespace fusedstep::cuda
