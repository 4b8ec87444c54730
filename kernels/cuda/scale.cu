// The step pass of kernels/rules/scale.h on the GPU.
#include "kernels/cuda/rules.h"
#include "kernels/cuda/step.h"
#include "kernels/rules/scale.h"

namespace fusedstep::cuda {

cudaError_t scale_pass(const Table& table, const Clip& clip, const Launch& range,
                       unsigned* finished, cudaStream_t stream) {
  return step_pass<Scale>(table, clip, range, finished, stream);
}

}  // namespace fusedstep::cuda
