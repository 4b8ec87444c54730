// Registers what decides about rank on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/cuda/rank.h"

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  using Ops = fusedstep::RankOps<fusedstep::cuda::RankKernels>;
  m.impl("certify", TORCH_BOX(&Ops::certify));
  m.impl("truncate_scale", TORCH_BOX(&Ops::truncate_scale));
}
