// Runs the GPU kernels over a tensor table on torch's current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <ranges>

#include "csrc/cuda/borrowed_table.h"
#include "csrc/cuda/stream.h"
#include "csrc/rule_groups.h"
#include "kernels/optim/norm.cuh"
#include "kernels/optim/step.cuh"

namespace fusedstep::cuda {

// The passes over one table, with its device and stream current. `lives_on`: whether the table
// outlives the op, so that its copy on the device is worth keeping.
class Passes {
 public:
  using Step = StepPass;

  Passes(TensorTable& table, const RuleGroups& groups, bool lives_on)
      : guard_(device_index(table)),
        stream_(current_stream(device_index(table))),
        launches_(table.layout().launches) {
    if (!lives_on) {
      borrowed_.emplace(device_index(table), stream_);
    }
    device_ = lives_on ? &device_side(table) : &**borrowed_;
    device_->synchronize(table, groups.data(), groups.bytes(), stream_);
  }

  void norm(Norm norm, const float* grad_scale, double* out) {
    check(norm_pass(device_->view(), norm, grad_scale, device_->partials(), device_->ticket(), out,
                    stream_),
          "launching the norm pass");
  }

  // Last launch first, as each of them takes its last chunk first: what the norm pass read last.
  void step(Step* step_pass, const Clip& clip) {
    for (const Launch& launch : std::views::reverse(launches_)) {
      check(step_pass(device_->view(), clip, launch, device_->finished(), stream_),
            "launching the step pass");
    }
  }

 private:
  static int32_t device_index(const TensorTable& table) {
    return table.slots()[0].param.get_device();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  const std::vector<Launch>& launches_;
  std::optional<BorrowedDeviceTable> borrowed_;
  DeviceTable* device_;
};

}  // namespace fusedstep::cuda
