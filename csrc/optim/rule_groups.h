// A rule's parameter groups, from the values that the ops receive to what its kernels read.
#pragma once

#include <span>
#include <string>

#include "csrc/checks.h"
#include "kernels/optim/step.h"

namespace fusedstep {

using Rule = RuleEntry<cpu::StepChunks>;  // every module has the same rules

inline const Rule& require_rule(const char* function, const std::string& name) {
  const Rule* const rule = find_rule<cpu::StepChunks>(name);
  Arg(function, "rule", name).must(rule != nullptr, "be one of kernels/optim/rules");
  return *rule;
}

class RuleGroups {
 public:
  // `values`: for each group one for each of the rule's fields, in their order. lrs[i], a float32
  // scalar, is the rate of group lr_groups[i] in the place of a value.
  RuleGroups(const char* function, const Rule& rule, const std::vector<double>& values,
             int64_t seed, const Tensors& lrs, const std::vector<int64_t>& lr_groups,
             const Tensor& first) {
    const size_t width = rule.fields.size();
    if (values.size() % width != 0) {
      Arg(function, "groups", values.size())
          .fail("have " + std::to_string(width) + " values a group");
    }
    const size_t count = values.size() / width;
    check_length(function, "lr_groups", lr_groups.size(), lrs.size());
    std::vector<const float*> rates(count);
    for (size_t i = 0; i < lrs.size(); ++i) {
      const int64_t g = lr_groups[i];
      Arg(function, "lr_groups", g, i)
          .must(g >= 0 && g < static_cast<int64_t>(count), "be a group's number");
      Arg(function, "lrs", lrs[i], i).scalar(Dtype::kFloat32, first);
      rates[g] = data_of<float>(lrs[i]);
    }
    bytes_.resize(count * rule.group_bytes);
    for (size_t g = 0; g < count; ++g) {
      std::byte* const group = bytes_.data() + g * rule.group_bytes;
      rule.make_group(group, values.data() + g * width, rates[g], static_cast<uint64_t>(seed));
      state_counts_.push_back(rule.num_states(group));
    }
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::vector<int64_t>& state_counts() const { return state_counts_; }  // by group

 private:
  std::vector<std::byte> bytes_;
  std::vector<int64_t> state_counts_;
};

}  // namespace fusedstep
