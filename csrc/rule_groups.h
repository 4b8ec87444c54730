// A rule's parameter groups, from the values that the ops receive to what its kernels read.
#pragma once

#include "csrc/checks.h"
#include "kernels/optim/rule.h"

namespace fusedstep {

class RuleGroups {
 public:
  // None: for the norm, which is the same whatever the groups.
  RuleGroups() = default;

  // `values`: for each group one for each of the rule's fields, in their order. lrs[i], a float32
  // scalar, is the rate of group lr_groups[i] in the place of a value.
  template <typename Step>
  RuleGroups(const char* function, const RuleEntry<Step>& rule, const std::vector<double>& values,
             int64_t seed, const Tensors& lrs, const std::vector<int64_t>& lr_groups,
             const Tensor& reference) {
    const size_t width = rule.fields.size();
    require(values.size() % width == 0, function, "groups", -1,
            ("have " + std::to_string(width) + " values a group").c_str(), values.size());
    const size_t count = values.size() / width;
    require_length(function, "lr_groups", lr_groups.size(), lrs.size());
    std::vector<const float*> rates(count);
    for (size_t i = 0; i < lrs.size(); ++i) {
      const int64_t g = lr_groups[i];
      require(g >= 0 && g < static_cast<int64_t>(count), function, "lr_groups", i,
              "be a group's number", g);
      require_scalar(function, "lrs", i, lrs[i], Dtype::kFloat32, reference);
      rates[g] = static_cast<const float*>(lrs[i].data_ptr());
    }
    bytes_.resize(count * rule.group_bytes);
    for (size_t g = 0; g < count; ++g) {
      std::byte* const group = bytes_.data() + g * rule.group_bytes;
      rule.make_group(group, values.data() + g * width, rates[g], static_cast<uint64_t>(seed));
      state_counts_.push_back(rule.num_states(group));
    }
  }

  const void* data() const { return bytes_.data(); }
  size_t bytes() const { return bytes_.size(); }
  const std::vector<int64_t>& state_counts() const { return state_counts_; }  // by group

 private:
  std::vector<std::byte> bytes_;
  std::vector<int64_t> state_counts_;
};

}  // namespace fusedstep
