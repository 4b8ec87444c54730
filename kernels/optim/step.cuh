// The step pass on the GPU as csrc/cuda calls it: by a rule's name in the registry.
#pragma once

#include <cuda_runtime.h>

#include "kernels/optim/clip.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/table.h"

namespace fusedstep::cuda {

// One launch for the chunks of `range`. `finished`: [rows] zeros, zeros again after.
using StepPass = cudaError_t(const Table& table, const Clip& clip, const Launch& range,
                             unsigned* finished, cudaStream_t stream);

}  // namespace fusedstep::cuda
