// The norm pass on the GPU: one launch over all chunks of all dtypes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/optim/norm.h"

namespace fusedstep::cuda {

// `partials`: [table.num_chunks]. `ticket`: 0 before, and 0 again after. `out`: the norm of
// the gradients divided by *grad_scale (null: 1), written by the block that finishes last.
cudaError_t norm_pass(const Table& table, Norm norm, const float* grad_scale, double* partials,
                      unsigned* ticket, double* out, cudaStream_t stream);

}  // namespace fusedstep::cuda
