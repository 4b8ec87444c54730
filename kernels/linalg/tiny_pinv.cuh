// The pseudo-inverses of tiny matrices on the GPU: one launch for all ranks.
#pragma once

#include <cuda_runtime.h>

#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cuda {

// `p` holds addresses on the device; there is a matrix, and it has an element.
cudaError_t tiny_pinv(const TinyPinv& p, cudaStream_t stream);

}  // namespace fusedstep::cuda
