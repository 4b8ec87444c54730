// Registers loss and gradient of rows of logits on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/cuda/softmax.h"

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  using Ops = fusedstep::SoftmaxOps<fusedstep::cuda::SoftmaxKernels>;
  m.impl("softmax_losses", TORCH_BOX(&Ops::softmax_losses));
  m.impl("softmax_directions_", TORCH_BOX(&Ops::softmax_directions_));
  m.impl("root_steps_", TORCH_BOX(&Ops::root_steps_));
}
