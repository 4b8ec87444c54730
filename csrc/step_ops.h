// The step of any rule as ops, for either device: arguments checked, table filled or compared,
// passes run.
#pragma once

#include <numeric>
#include <string>

#include "csrc/rule_groups.h"
#include "csrc/step_options.h"
#include "csrc/tensor_table.h"

namespace fusedstep {

template <typename Passes>
struct StepOps {
  static void step_(const std::string& rule, const Tensors& params, const Tensors& grads,
                    const Tensors& arrays, const std::vector<int64_t>& roles,
                    const std::vector<int64_t>& array_counts,
                    const std::vector<int64_t>& group_sizes, const std::vector<double>& groups,
                    int64_t seed, const Tensors& lrs, const std::vector<int64_t>& lr_groups,
                    std::optional<Tensor> norm, std::optional<Tensor> grad_scale,
                    std::optional<Tensor> found_inf, double max_norm, bool skip_nonfinite) {
    constexpr const char* kFunction = "step_";
    const auto& entry = require_rule(kFunction, rule);
    require(!params.empty(), kFunction, "params", -1, "not be empty", 0);
    const RuleGroups of_rule(kFunction, entry, groups, seed, lrs, lr_groups, params[0]);
    require_length(kFunction, "grads", grads.size(), params.size());
    std::vector<int64_t> positions(params.size());
    std::iota(positions.begin(), positions.end(), 0);
    TensorTable table;
    table.assign(kFunction, params, arrays, roles, array_counts, group_sizes, positions);
    require_states(kFunction, table, of_rule);
    require(table.refresh(grads, {}), kFunction, "grads", -1,
            "have their parameters' device, shape and strides and a supported dtype", "others");
    const StepOptions options{norm, grad_scale, found_inf, max_norm, skip_nonfinite};
    options.check(kFunction, params[0]);
    Passes(table, of_rule, false).step(entry.step, options.clip());
  }

  // After table_refresh. norm_type 0: `norm` is given, or not wanted; else it is computed first.
  static void table_step_(int64_t table, const std::string& rule, const Tensor& param,
                          const std::vector<double>& groups, int64_t seed, const Tensors& lrs,
                          const std::vector<int64_t>& lr_groups, std::optional<Tensor> norm,
                          double norm_type, std::optional<Tensor> grad_scale,
                          std::optional<Tensor> found_inf, double max_norm, bool skip_nonfinite) {
    constexpr const char* kFunction = "table_step_";
    auto& tensors = *reinterpret_cast<TensorTable*>(table);
    require(!tensors.empty(), kFunction, "table", -1, "have gradients", "none");
    const auto& entry = require_rule(kFunction, rule);
    const RuleGroups of_rule(kFunction, entry, groups, seed, lrs, lr_groups, param);
    require_states(kFunction, tensors, of_rule);
    const StepOptions options{norm, grad_scale, found_inf, max_norm, skip_nonfinite};
    options.check(kFunction, param);
    Passes passes(tensors, of_rule, true);
    if (norm_type > 0) {
      require(norm.has_value(), kFunction, "norm", -1, "be given to be computed", "None");
      passes.norm(require_norm(kFunction, norm_type), data_or_null<float>(grad_scale),
                  data_or_null<double>(norm));
    }
    passes.step(entry.step, options.clip());
  }

 private:
  static const RuleEntry<typename Passes::Step>& require_rule(const char* function,
                                                              const std::string& name) {
    const auto* entry = find_rule<typename Passes::Step>(name);
    require(entry != nullptr, function, "rule", -1, "be one of kernels/optim/rules", name);
    return *entry;
  }

  static void require_states(const char* function, const TensorTable& table,
                             const RuleGroups& groups) {
    const auto& counts = table.state_counts();
    require_length(function, "groups", groups.state_counts().size(), counts.size());
    for (size_t g = 0; g < counts.size(); ++g) {
      require(counts[g] < 0 || counts[g] == groups.state_counts()[g], function, "groups", g,
              "need as many states as its parameters have", groups.state_counts()[g]);
    }
  }
};

}  // namespace fusedstep
