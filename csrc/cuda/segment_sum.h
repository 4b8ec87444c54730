// Sums of rows by id on NVIDIA GPUs: the launch.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/stream.h"
#include "csrc/segment_sum_ops.h"
#include "kernels/lm_head/segment_sum.cuh"

namespace fusedstep::cuda {

struct SegmentSumKernels {
  // Would wait for the device. Whoever calls the op vouches for the indices, as LeastSquares does.
  static void require_in_range(const char*, const Segments&, int64_t, int64_t) {}

  static void run(const Segments& segments, int32_t device) {
    const torch::stable::accelerator::DeviceGuard guard(device);
    check(segment_sum(segments, current_stream(device)), "launching the segment sum");
  }
};

}  // namespace fusedstep::cuda
