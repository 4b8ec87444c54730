// Registers the Gram matrices of rows on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/cuda/gram.h"

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  m.impl("gram_", TORCH_BOX(&fusedstep::GramOps<fusedstep::cuda::GramKernels>::gram_));
}
