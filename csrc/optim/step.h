// What norms and steps are given, from the arguments of the ops to what the kernels read.
#pragma once

#include <span>
#include <string>

#include "csrc/checks.h"
#include "csrc/device.h"
#include "kernels/optim/rule.h"

namespace fusedstep {

struct StepOptions {
  std::optional<Tensor> norm;        // float64 scalar: the global norm, computed or to be computed
  std::optional<Tensor> grad_scale;  // GradScaler's
  std::optional<Tensor> found_inf;   // GradScaler's
  double max_norm;                   // below 0: do not clip
  bool skip_nonfinite;

  void check(const char* function, const Tensor& first) const {
    check_scalar(function, "norm", norm, Dtype::kFloat64, first);
    check_scalar(function, "grad_scale", grad_scale, Dtype::kFloat32, first);
    check_scalar(function, "found_inf", found_inf, Dtype::kFloat32, first);
  }

  Clip clip() const {
    return {data_or_null<double>(norm), data_or_null<float>(grad_scale),
            data_or_null<float>(found_inf), max_norm, skip_nonfinite};
  }
};

// 2, 1 and infinity are the norms that exist here.
inline Norm norm_of(const char* function, double norm_type) {
  const bool known = norm_type == 2 || norm_type == 1 || norm_type == INFINITY;
  Arg(function, "norm_type", norm_type).must(known, "be 2, 1 or inf");
  return norm_type == 2 ? Norm::kTwo : norm_type == 1 ? Norm::kOne : Norm::kInf;
}

using Rule = RuleEntry<cpu::StepChunks>;  // every module has the same rules

inline const Rule& require_rule(const char* function, const std::string& name) {
  const Rule* const rule = find_rule<cpu::StepChunks>(name);
  Arg(function, "rule", name).must(rule != nullptr, "be one of kernels/optim/rules");
  return *rule;
}

// What the steps of an optimizer have in common while nobody changes a hyperparameter or an option;
// in Python fusedstep._C.StepPlan, made once, since the dispatcher takes its time for every
// argument.
struct StepPlan {
  std::string rule;
  std::vector<double> values;  // for each group one for each of the rule's fields, in their order
  int64_t seed;                // the bits of an unsigned integer
  std::vector<int64_t> lr_groups;  // groups whose rate is a tensor
  double max_norm;                 // below 0: do not clip
  bool skip_nonfinite;
};

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
