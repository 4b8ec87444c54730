// The step pass on the GPU of every rule: what the adapters in csrc/cuda/ call.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/clip.h"
#include "kernels/common/layout.h"

namespace fusedstep::cuda {

cudaError_t adam_pass(const Table& table, const Clip& clip, const Launch& range, unsigned* finished,
                      cudaStream_t stream);
cudaError_t scale_pass(const Table& table, const Clip& clip, const Launch& range,
                       unsigned* finished, cudaStream_t stream);

}  // namespace fusedstep::cuda
