// Adam's parameter groups as the ops receive them: a row of numbers a group, and the rates that are
// tensors.
#pragma once

#include "csrc/checks.h"
#include "csrc/tensor_table.h"
#include "kernels/rules/adam.h"

namespace fusedstep {

// lr, beta1, beta2, eps, weight_decay, decoupled, maximize, amsgrad, lr_is_tensor
constexpr size_t kAdamFields = 9;

// `lrs`: the rates of the groups whose last field is 1, in order, float32 scalars.
inline std::vector<AdamGroup> adam_groups(const char* function, const std::vector<double>& fields,
                                          const Tensors& lrs, const Tensor& reference) {
  require(fields.size() % kAdamFields == 0, function, "groups", -1, "have 9 numbers a group",
          fields.size());
  std::vector<AdamGroup> groups;
  size_t next_lr = 0;
  for (size_t at = 0; at < fields.size(); at += kAdamFields) {
    const double* f = fields.data() + at;
    AdamGroup group{nullptr, f[0], f[1], f[2], f[3], f[4], f[5] != 0, f[6] != 0, f[7] != 0};
    if (f[8] != 0) {
      require(next_lr < lrs.size(), function, "lrs", -1, "have one rate a group that asks for it",
              lrs.size());
      require_scalar(function, "lrs", next_lr, lrs[next_lr], Dtype::kFloat32, reference);
      group.lr_tensor = static_cast<const float*>(lrs[next_lr++].data_ptr());
    }
    groups.push_back(group);
  }
  require_length(function, "lrs", lrs.size(), next_lr);
  return groups;
}

inline std::vector<int64_t> adam_state_counts(const std::vector<AdamGroup>& groups) {
  std::vector<int64_t> counts;
  for (const AdamGroup& group : groups) {
    counts.push_back(group.amsgrad ? 3 : 2);
  }
  return counts;
}

// Fills a table from the lists of the op `adam_`; max_exp_avg_sqs has the tensors of the groups
// with amsgrad.
inline std::vector<AdamGroup> assign_adam(TensorTable& table, const Tensors& params,
                                          const Tensors& grads, const Tensors& exp_avgs,
                                          const Tensors& exp_avg_sqs,
                                          const Tensors& max_exp_avg_sqs, const Tensors& steps,
                                          const std::vector<int64_t>& group_sizes,
                                          const std::vector<double>& fields, const Tensors& lrs) {
  constexpr const char* kFunction = "adam_";
  require(!params.empty(), kFunction, "params", -1, "not be empty", 0);
  require_length(kFunction, "grads", grads.size(), params.size());
  require_length(kFunction, "exp_avgs", exp_avgs.size(), params.size());
  require_length(kFunction, "exp_avg_sqs", exp_avg_sqs.size(), params.size());
  auto groups = adam_groups(kFunction, fields, lrs, params[0]);
  require_length(kFunction, "groups", groups.size(), group_sizes.size());
  Tensors states = exp_avgs;
  states.insert(states.end(), exp_avg_sqs.begin(), exp_avg_sqs.end());
  states.insert(states.end(), max_exp_avg_sqs.begin(), max_exp_avg_sqs.end());
  table.assign(kFunction, params, states, steps, group_sizes, adam_state_counts(groups));
  require(table.refresh(grads, {}), kFunction, "grads", -1,
          "have their parameters' device, shape and strides and a supported dtype", "others");
  return groups;
}

}  // namespace fusedstep
