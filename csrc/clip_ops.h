// The global norm and the clip as ops, for either device: arguments checked, table filled, passes
// run.
#pragma once

#include "csrc/empty.h"
#include "csrc/rule_groups.h"
#include "csrc/step_options.h"
#include "csrc/tensor_table.h"

namespace fusedstep {

template <typename Passes>
struct ClipOps {
  static Tensor total_norm(const Tensors& tensors, double norm_type,
                           std::optional<Tensor> grad_scale) {
    const Norm norm = require_norm("total_norm", norm_type);
    TensorTable table;
    table.assign("total_norm", tensors);
    require_scalar("total_norm", "grad_scale", grad_scale, Dtype::kFloat32, tensors[0]);
    const Tensor out = empty_beside(tensors[0], {});
    Passes(table, RuleGroups(), false).norm(norm, data_or_null<float>(grad_scale), doubles(out));
    return out;
  }

  static void clip_by_norm_(const Tensors& tensors, const Tensor& norm, double max_norm) {
    TensorTable table;
    table.assign("clip_by_norm_", tensors);
    const StepOptions options{norm, std::nullopt, std::nullopt, max_norm, false};
    options.check("clip_by_norm_", tensors[0]);
    const auto& scale = *find_rule<typename Passes::Step>("scale");
    const std::vector<double> one_group(scale.fields.size());
    const RuleGroups groups("clip_by_norm_", scale, one_group, 0, {}, {}, tensors[0]);
    Passes(table, groups, false).step(scale.step, options.clip());
  }

  // After table_refresh.
  static void table_norm_(int64_t table, const Tensor& norm, double norm_type,
                          std::optional<Tensor> grad_scale) {
    constexpr const char* kFunction = "table_norm_";
    auto& tensors = *reinterpret_cast<TensorTable*>(table);
    require(!tensors.empty(), kFunction, "table", -1, "have gradients", "none");
    require_scalar(kFunction, "norm", -1, norm, Dtype::kFloat64, tensors.slots()[0].param);
    require_scalar(kFunction, "grad_scale", grad_scale, Dtype::kFloat32, norm);
    Passes(tensors, RuleGroups(), true)
        .norm(require_norm(kFunction, norm_type), data_or_null<float>(grad_scale),
              static_cast<double*>(norm.data_ptr()));
  }
};

}  // namespace fusedstep
