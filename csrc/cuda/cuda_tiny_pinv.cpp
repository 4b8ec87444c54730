// Registers the pseudo-inverses of tiny matrices on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/cuda/tiny_pinv.h"

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  using Ops = fusedstep::TinyPinvOps<fusedstep::cuda::TinyPinvKernels>;
  m.impl("pinv_tiny", TORCH_BOX(&Ops::pinv_tiny));
}
