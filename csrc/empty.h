// Memory from torch's allocator, for results and for what kernels need on the way.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "csrc/tensor.h"

namespace fusedstep {

using torch::headeronly::ScalarType;

// Contiguous, on the device of `like`.
inline Tensor empty_beside(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                           ScalarType dtype = ScalarType::Double) {
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device());
}

inline double* doubles(const Tensor& tensor) { return static_cast<double*>(tensor.data_ptr()); }

}  // namespace fusedstep
