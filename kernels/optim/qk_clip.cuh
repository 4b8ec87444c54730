// QK-Clip on the GPU: one launch for any number of weights of any dtypes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/optim/qk_clip.h"

namespace fusedstep::cuda {

// `table`, its groups included, as cpu::qk_clip takes it. Which heads are scaled is decided on the
// GPU.
cudaError_t qk_clip(const Table& table, double threshold, cudaStream_t stream);

}  // namespace fusedstep::cuda
