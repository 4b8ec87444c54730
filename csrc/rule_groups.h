// A rule's parameter groups, from the numbers that the ops receive to what its kernels read.
#pragma once

#include <cstring>

#include "csrc/checks.h"
#include "kernels/optim/rule.h"

namespace fusedstep {

// What a group's numbers begin with; the fields of the rule's Group follow.
struct GroupNumbers {
  double lr, lr_is_tensor, maximize, average_decay, stochastic, seed_low, seed_high;
  static constexpr size_t kCount = 7;
};

class RuleGroups {
 public:
  // None: for the norm, which is the same whatever the groups.
  RuleGroups() = default;

  // `lrs`: the rates of the groups whose lr_is_tensor is 1, in order, float32 scalars.
  template <typename Step>
  RuleGroups(const char* function, const RuleEntry<Step>& rule, const std::vector<double>& numbers,
             const Tensors& lrs, const Tensor& reference) {
    const size_t width = GroupNumbers::kCount + rule.num_fields;
    require(numbers.size() % width == 0, function, "groups", -1,
            ("have " + std::to_string(width) + " numbers a group").c_str(), numbers.size());
    const size_t count = numbers.size() / width;
    bytes_.resize(count * rule.group_bytes);
    size_t next_lr = 0;
    for (size_t g = 0; g < count; ++g) {
      GroupNumbers given;
      std::memcpy(&given, numbers.data() + g * width, sizeof(given));
      GroupHead head{
          nullptr,
          given.lr,
          given.maximize,
          given.average_decay,
          given.stochastic,
          static_cast<uint64_t>(given.seed_high) << 32 | static_cast<uint64_t>(given.seed_low)};
      if (given.lr_is_tensor != 0) {
        require(next_lr < lrs.size(), function, "lrs", -1, "have one rate a group that asks for it",
                lrs.size());
        require_scalar(function, "lrs", next_lr, lrs[next_lr], Dtype::kFloat32, reference);
        head.lr_tensor = static_cast<const float*>(lrs[next_lr++].data_ptr());
      }
      std::byte* const group = bytes_.data() + g * rule.group_bytes;
      std::memcpy(group, &head, sizeof(head));
      std::memcpy(group + sizeof(head), numbers.data() + g * width + GroupNumbers::kCount,
                  rule.num_fields * sizeof(double));
      state_counts_.push_back(rule.num_states(group));
    }
    require_length(function, "lrs", lrs.size(), next_lr);
  }

  const void* data() const { return bytes_.data(); }
  size_t bytes() const { return bytes_.size(); }
  const std::vector<int64_t>& state_counts() const { return state_counts_; }  // by group

 private:
  std::vector<std::byte> bytes_;
  std::vector<int64_t> state_counts_;
};

}  // namespace fusedstep
