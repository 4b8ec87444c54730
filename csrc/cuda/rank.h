// Runs the kernels that decide about rank on torch's stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/stream.h"
#include "csrc/rank_ops.h"
#include "kernels/linalg/certificate.cuh"
#include "kernels/linalg/truncate.cuh"

namespace fusedstep::cuda {

struct RankKernels {
  static void certify(const Certificates& certificates, int32_t device) {
    const torch::stable::accelerator::DeviceGuard guard(device);
    check(cuda::certify(certificates, current_stream(device)), "launching the certificate");
  }

  static void truncate(const Truncation& truncation, int32_t device) {
    const torch::stable::accelerator::DeviceGuard guard(device);
    check(cuda::truncate(truncation, current_stream(device)), "launching the truncation");
  }
};

}  // namespace fusedstep::cuda
