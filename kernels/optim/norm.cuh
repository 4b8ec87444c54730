// The norm pass on the GPU: one launch over all chunks of all dtypes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/optim/norm.h"

namespace fusedstep::cuda {

// `partials`: [table.num_chunks]. `ticket`: 0 before, and 0 again after. `out`: the norm of
// the gradients divided by *grad_scale (null: 1), written by the block that finishes last;
// `published`: the same rounded to float32, unless it is null.
cudaError_t norm_pass(const Table& table, Norm norm, const float* grad_scale, double* partials,
                      unsigned* ticket, double* out, float* published, cudaStream_t stream);

}  // namespace fusedstep::cuda
