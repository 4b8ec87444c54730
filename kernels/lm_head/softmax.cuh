// Loss and gradient of rows of logits on the GPU, without atomics on the results.
#pragma once

#include <cuda_runtime.h>

#include "kernels/lm_head/softmax.h"

namespace fusedstep::cuda {

// `softmax` holds addresses on the device; count and classes are at least 1. `tickets` [count] are
// 0 and will be 0 again. Two launches, or one where nothing is written, or count + 1 where rows
// take their steps one after another.
cudaError_t softmax_rows(const Softmax& softmax, unsigned* tickets, cudaStream_t stream);

}  // namespace fusedstep::cuda
