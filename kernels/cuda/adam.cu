// The step pass of kernels/rules/adam.h on the GPU.
#include "kernels/cuda/rules.h"
#include "kernels/cuda/step.h"
#include "kernels/rules/adam.h"

namespace fusedstep::cuda {

cudaError_t adam_pass(const Table& table, const Clip& clip, const Launch& range, unsigned* finished,
                      cudaStream_t stream) {
  return step_pass<Adam>(table, clip, range, finished, stream);
}

}  // namespace fusedstep::cuda
