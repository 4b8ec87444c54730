// The global norm and the clip as ops, for either device: arguments checked, table filled, passes
// run.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "csrc/step_options.h"
#include "csrc/tensor_table.h"
#include "kernels/rules/scale.h"

namespace fusedstep {

template <typename Passes>
struct ClipOps {
  static Tensor total_norm(const Tensors& tensors, double norm_type,
                           std::optional<Tensor> grad_scale) {
    const Norm norm = require_norm("total_norm", norm_type);
    TensorTable table;
    table.assign("total_norm", tensors);
    require_scalar("total_norm", "grad_scale", grad_scale, Dtype::kFloat32, tensors[0]);
    Tensor out = torch::stable::empty({}, torch::headeronly::ScalarType::Double, std::nullopt,
                                      tensors[0].device());
    Passes(table, kGroups, false)
        .norm(norm, data_or_null<float>(grad_scale), static_cast<double*>(out.data_ptr()));
    return out;
  }

  static void clip_by_norm_(const Tensors& tensors, const Tensor& norm, double max_norm) {
    TensorTable table;
    table.assign("clip_by_norm_", tensors);
    const StepOptions options{norm, std::nullopt, std::nullopt, max_norm, false};
    options.check("clip_by_norm_", tensors[0]);
    Passes(table, kGroups, false).scale(options.clip());
  }

  static bool table_norm_(int64_t table, const Tensors& grads, const std::vector<int64_t>& missing,
                          const Tensor& norm, double norm_type, std::optional<Tensor> grad_scale) {
    auto& tensors = *reinterpret_cast<TensorTable*>(table);
    if (!tensors.refresh(grads, missing)) {
      return false;
    }
    Passes(tensors, kGroups, true)
        .norm(require_norm("table_norm_", norm_type), data_or_null<float>(grad_scale),
              static_cast<double*>(norm.data_ptr()));
    return true;
  }

 private:
  static inline const std::vector<Scale::Group> kGroups{Scale::Group{}};
};

}  // namespace fusedstep
