// Registers the sums of rows by id on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/cuda/segment_sum.h"

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  using Ops = fusedstep::SegmentSumOps<fusedstep::cuda::SegmentSumKernels>;
  m.impl("segment_sum_", TORCH_BOX(&Ops::segment_sum_));
}
