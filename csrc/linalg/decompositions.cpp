// The ops inverse_of_cholesky_factor, eigh and svd, of batches in which one matrix may fail alone.
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

// float64 [b, n, n] of any strides.
void check_squares(const char* function, const char* argument, const Tensor& batch) {
  Arg(function, argument, batch)
      .is({ScalarType::Double})
      .dims(3)
      .must(batch.size(1) == batch.size(2), "be square")
      .must(batch.size(1) <= kMostRows, "have at most " + std::to_string(kMostRows) + " rows");
}

// The function of the device that does it.
template <typename Function>
Function* require_function(const char* op, Function* function) {
  if (function == nullptr) {
    throw std::runtime_error(std::string("fusedstep: ") + op +
                             " is for NVIDIA GPUs; on a CPU torch.linalg serves");
  }
  return function;
}

// A copy to be overwritten, and zeros that say that nothing failed.
struct Copy {
  Tensor data, info;

  explicit Copy(const Tensor& batch)
      : data(empty_on(batch, batch.sizes())),
        info(empty_on(batch, {batch.size(0)}, ScalarType::Int)) {
    torch::stable::copy_(data, batch);
    torch::stable::zero_(info);
  }

  Squares squares() const {
    return {data_of<double>(data), data.size(0), data.size(1), data_of<int32_t>(info)};
  }
};

std::tuple<Tensor, Tensor, Tensor> inverse_of_cholesky_factor(const Tensor& G) {
  constexpr const char* kFunction = "inverse_of_cholesky_factor";
  check_squares(kFunction, "G", G);
  auto* const run = require_function(kFunction, device_of(G).inverse_of_cholesky_factor);
  const Copy factors(G);
  const Tensor inverses = empty_on(G, G.sizes());
  if (G.numel() > 0) {
    Workspace workspace(G);
    run(factors.squares(), data_of<double>(inverses), workspace);
  }
  return {factors.data, inverses, factors.info};
}

std::tuple<Tensor, Tensor, Tensor> eigh(const Tensor& A) {
  check_squares("eigh", "A", A);
  auto* const run = require_function("eigh", device_of(A).eigh);
  const Copy vectors(A);
  const Tensor values = empty_on(A, {A.size(0), A.size(1)});
  if (A.numel() > 0) {
    Workspace workspace(A);
    run(vectors.squares(), data_of<double>(values), workspace);
  }
  return {values, torch::stable::transpose(vectors.data, 1, 2), vectors.info};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> svd(const Tensor& R) {
  check_squares("svd", "R", R);
  Arg("svd", "R", R)
      .must(R.size(1) <= kSvdColumns, "have at most " + std::to_string(kSvdColumns) + " rows");
  auto* const run = require_function("svd", device_of(R).svd);
  const Copy copy(R);
  const Tensor values = empty_on(R, {R.size(0), R.size(1)});
  const Tensor U = empty_on(R, R.sizes()), Vh = empty_on(R, R.sizes());
  if (R.numel() > 0) {
    Workspace workspace(R);
    run(copy.squares(), data_of<double>(U), data_of<double>(values), data_of<double>(Vh),
        workspace);
  }
  return {torch::stable::transpose(U, 1, 2), values, Vh, copy.info};
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Of float64 matrices [b, k, k], on NVIDIA GPUs alone, by cuSOLVER and cuBLAS: L⁻¹ of G = L Lᵀ;
  // A = V λ Vᵀ of what A's lower triangle says, λ ascending; R = U σ Vᵀ for k <= 32, σ descending.
  // The last result, int32 [b], is 0 for each matrix that succeeded. No result is read on the host.
  // Products are torch's: its matmul is cublasDgemmStridedBatched already.
  m.def("inverse_of_cholesky_factor(Tensor G) -> (Tensor, Tensor, Tensor)");
  m.def("eigh(Tensor A) -> (Tensor, Tensor, Tensor)");
  m.def("svd(Tensor R) -> (Tensor, Tensor, Tensor, Tensor)");
}

FUSEDSTEP_IMPL(m) {
  m.impl("inverse_of_cholesky_factor", TORCH_BOX(&fusedstep::inverse_of_cholesky_factor));
  m.impl("eigh", TORCH_BOX(&fusedstep::eigh));
  m.impl("svd", TORCH_BOX(&fusedstep::svd));
}
