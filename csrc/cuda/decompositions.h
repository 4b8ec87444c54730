// The decompositions of batches on NVIDIA GPUs, as csrc/ops.cpp describes them: float64, in order
// on torch's current stream, nothing read on the host.
#pragma once

#include <tuple>

#include "csrc/tensor.h"

namespace fusedstep::cuda {

std::tuple<Tensor, Tensor> inverse_of_cholesky_factor(const Tensor& G);
std::tuple<Tensor, Tensor, Tensor> eigh(const Tensor& A);
std::tuple<Tensor, Tensor, Tensor, Tensor> svd(const Tensor& R);

}  // namespace fusedstep::cuda
