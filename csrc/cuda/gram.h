// Runs the Gram kernels on torch's stream, in memory of torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/stream.h"
#include "csrc/empty.h"
#include "csrc/gram_ops.h"
#include "kernels/linalg/gram.cuh"

namespace fusedstep::cuda {

struct GramKernels {
  static void run(const GramRows& rows, const Tensor& gram_tensor) {
    const torch::stable::accelerator::DeviceGuard guard(gram_tensor.get_device());
    const int64_t size = gram_partials(rows);
    const Tensor partials = empty_beside(gram_tensor, {size});
    auto* const data = size > 0 ? doubles(partials) : nullptr;
    check(gram(rows, data, current_stream(gram_tensor.get_device())), "launching the Gram matrix");
  }
};

}  // namespace fusedstep::cuda
