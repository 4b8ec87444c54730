// The pseudo-inverses of tiny matrices on a GPU, as the op of csrc/tiny_pinv_ops.h runs them.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/stream.h"
#include "csrc/tiny_pinv_ops.h"
#include "kernels/linalg/tiny_pinv.cuh"

namespace fusedstep::cuda {

struct TinyPinvKernels {
  static void run(const TinyPinv& p, int32_t device) {
    const torch::stable::accelerator::DeviceGuard guard(device);
    check(tiny_pinv(p, current_stream(device)), "launching the tiny pseudo-inverses");
  }
};

}  // namespace fusedstep::cuda
