// Runs the CPU kernels over a tensor table on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "csrc/rule_groups.h"
#include "csrc/tensor_table.h"
#include "kernels/optim/norm.h"
#include "kernels/optim/step.h"

namespace fusedstep {

// Calls f(begin, end) on ranges with even shares of the work, in parallel.
template <typename F>
void for_shares(const Layout& layout, const F& f) {
  constexpr int64_t kWorthAThread = 16384;  // elements
  const int64_t useful = layout.cost.back() / kWorthAThread + 1;
  const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), useful);
  if (workers == 1) {
    f(Position{0}, Position{layout.num_chunks()});
    return;
  }
  torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    f(share_begin(layout, first, workers), share_begin(layout, last, workers));
  });
}

// The passes over one table. The CPU reads the table where it is, however long it lives.
class CpuPasses {
 public:
  using Step = cpu::StepChunks;

  CpuPasses(TensorTable& table, const RuleGroups& groups, bool /*lives_on*/)
      : table_(table), groups_(groups), host_(table.host(groups_.data())) {}

  void norm(Norm norm, const float* grad_scale, double* out) {
    auto& partials = table_.partials;
    partials.resize(host_.num_chunks);
    // A chunk has one partial result, so it is for the worker whose share it begins in.
    const auto whole = [](Position at) { return at.element > 0 ? at.chunk + 1 : at.chunk; };
    for_shares(table_.layout(), [&](Position begin, Position end) {
      cpu::norm_chunks(host_, norm, whole(begin), whole(end), partials.data());
    });
    *out = cpu::fold_partials(norm, partials.data(), host_.num_chunks, grad_scale);
  }

  void step(Step* step_chunks, const Clip& clip) {
    for_shares(table_.layout(),
               [&](Position begin, Position end) { step_chunks(host_, clip, begin, end); });
    cpu::advance_steps(host_, static_cast<int64_t>(table_.layout().rows.size()), clip);
  }

 private:
  TensorTable& table_;
  const RuleGroups groups_;
  Table host_;
};

}  // namespace fusedstep
