// Sums of rows by id on the GPU: two launches, without atomics.
#pragma once

#include <cuda_runtime.h>

#include "kernels/lm_head/segment_sum.h"

namespace fusedstep::cuda {

// `segments` holds addresses on the device; count and width are at least 1.
cudaError_t segment_sum(const Segments& segments, cudaStream_t stream);

}  // namespace fusedstep::cuda
