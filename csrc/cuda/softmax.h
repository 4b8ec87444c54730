// Loss and gradient of rows of logits on NVIDIA GPUs: memory for the kernels, and the launch.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/stream.h"
#include "csrc/empty.h"
#include "csrc/softmax_ops.h"
#include "kernels/lm_head/softmax.cuh"

namespace fusedstep::cuda {

struct SoftmaxKernels {
  // Would wait for the device. Whoever calls the op vouches for the tokens.
  static void require_in_range(const char*, const Softmax&) {}

  static void run(const Softmax& softmax, const Tensor& logits) {
    const torch::stable::accelerator::DeviceGuard guard(logits.get_device());
    Tensor tickets = empty_beside(logits, {softmax.count}, ScalarType::Int);
    torch::stable::zero_(tickets);
    check(softmax_rows(softmax, static_cast<unsigned*>(tickets.data_ptr()),
                       current_stream(logits.get_device())),
          "launching the softmax");
  }
};

}  // namespace fusedstep::cuda
