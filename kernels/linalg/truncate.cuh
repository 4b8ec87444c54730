// Truncation of singular values on the GPU: two launches, nothing read on the host.
#pragma once

#include <cuda_runtime.h>

#include "kernels/linalg/truncate.h"

namespace fusedstep::cuda {

// Addresses on the device; batch, count and width are at least 1.
cudaError_t truncate(const Truncation& truncation, cudaStream_t stream);

}  // namespace fusedstep::cuda
