// Adam's step as ops, for either device: arguments checked, table filled or compared, passes run.
#pragma once

#include "csrc/adam_groups.h"
#include "csrc/step_options.h"

namespace fusedstep {

template <typename Passes>
struct AdamOps {
  static void adam_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                    const Tensors& exp_avg_sqs, const Tensors& max_exp_avg_sqs,
                    const Tensors& steps, const std::vector<int64_t>& group_sizes,
                    const std::vector<double>& groups, const Tensors& lrs,
                    std::optional<Tensor> norm, std::optional<Tensor> grad_scale,
                    std::optional<Tensor> found_inf, double max_norm, bool skip_nonfinite) {
    TensorTable table;
    const auto adam = assign_adam(table, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs,
                                  steps, group_sizes, groups, lrs);
    const StepOptions options{norm, grad_scale, found_inf, max_norm, skip_nonfinite};
    options.check("adam_", params[0]);
    Passes(table, adam, false).adam(options.clip());
  }

  // After table_refresh. norm_type 0: `norm` is given, or not wanted; else it is computed first.
  static void table_adam_(int64_t table, const Tensor& param, const std::vector<double>& groups,
                          const Tensors& lrs, std::optional<Tensor> norm, double norm_type,
                          std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                          double max_norm, bool skip_nonfinite) {
    constexpr const char* kFunction = "table_adam_";
    auto& tensors = *reinterpret_cast<TensorTable*>(table);
    require(!tensors.empty(), kFunction, "table", -1, "have gradients", "none");
    const auto adam = adam_groups(kFunction, groups, lrs, param);
    require(tensors.state_counts() == adam_state_counts(adam), kFunction, "groups", -1,
            "have the states that the table was assigned", "others");
    const StepOptions options{norm, grad_scale, found_inf, max_norm, skip_nonfinite};
    options.check(kFunction, param);
    Passes passes(tensors, adam, true);
    if (norm_type > 0) {
      require(norm.has_value(), kFunction, "norm", -1, "be given to be computed", "None");
      passes.norm(require_norm(kFunction, norm_type), data_or_null<float>(grad_scale),
                  data_or_null<double>(norm));
    }
    passes.adam(options.clip());
  }
};

}  // namespace fusedstep
