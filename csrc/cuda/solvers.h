// The decompositions of batches by cuBLAS and cuSOLVER, as csrc/device.h describes them: float64,
// queued on `stream`, with its device current; nothing is read on the host.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "csrc/device.h"

namespace fusedstep::cuda {

void inverse_of_cholesky_factor(const Squares& G, double* inverses, Workspace& workspace,
                                cudaStream_t stream);
void eigh(const Squares& A, double* values, Workspace& workspace, cudaStream_t stream);
void svd(const Squares& R, double* U, double* values, double* Vh, Workspace& workspace,
         cudaStream_t stream);

// The libraries count in int, elements included, and XsyevBatched refuses 32768 matrices of any
// size.
constexpr int64_t kMostMatrices = 16384;
constexpr int64_t kMostElements = INT32_MAX;
static_assert(kMostRows * kMostRows <= kMostElements);

// Calls solve(first, count) for every piece of a batch of matrices of so many elements each.
template <typename Solve>
void in_pieces(int64_t batch, int64_t elements, Solve solve) {
  if (elements == 0) {
    return;
  }
  const int64_t most = std::min(kMostMatrices, kMostElements / elements);
  for (int64_t first = 0; first < batch; first += most) {
    solve(first, std::min(most, batch - first));
  }
}

}  // namespace fusedstep::cuda
