// The arguments that norms and steps have in common, as the ops receive them, and their meaning for
// the kernels.
#pragma once

#include "csrc/checks.h"
#include "csrc/device.h"

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

}  // namespace fusedstep
