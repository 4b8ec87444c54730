// The op row_space: ranks and row spaces of matrices from their Gram matrices.
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> row_space(const Tensor& gram, const Tensor& atol,
                                                     const Tensor& rtol, int64_t count,
                                                     bool guess) {
  constexpr const char* kFunction = "row_space";
  const Arg gram_arg(kFunction, "gram", gram);
  gram_arg.is({ScalarType::Double}).dims(3).contiguous();
  const int64_t batch = gram.size(0), width = gram.size(2);
  gram_arg.must(gram.size(1) == width, "be square").must(width > 0 || batch == 0, "have columns");
  for (const auto& [argument, tensor] : {std::pair("atol", &atol), std::pair("rtol", &rtol)}) {
    Arg(kFunction, argument, *tensor)
        .is({ScalarType::Double})
        .contiguous()
        .shape({batch})
        .on_device_of(gram);
  }
  Arg(kFunction, "count", count).must(count >= width, "be at least the width of gram");
  auto* const run = device_of(gram).row_space;
  if (run == nullptr) {
    throw std::runtime_error("fusedstep: row_space is for CPUs; on a GPU eigh serves");
  }
  const Tensor inverses = empty_on(gram, gram.sizes());
  const Tensor verdict = empty_on(gram, {batch}, ScalarType::Int);
  const Tensor rank = empty_on(gram, {batch}, ScalarType::Long);
  const Tensor rcond = empty_on(gram, {batch});
  if (gram.numel() > 0) {
    Workspace workspace(gram);
    run({.gram = data_of<double>(gram),
         .atol = data_of<double>(atol),
         .rtol = data_of<double>(rtol),
         .batch = batch,
         .count = count,
         .width = width,
         .guess = guess,
         .inverses = data_of<double>(inverses),
         .verdict = data_of<int32_t>(verdict),
         .rank = data_of<int64_t>(rank),
         .rcond = data_of<double>(rcond)},
        workspace);
  }
  return {torch::stable::transpose(inverses, 1, 2), verdict, rank, rcond};
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Of each G = XᵀX [k, k], X of `count` rows: W [k, k], zero from column
  // rank on, with X⁺ = W (X W)ᵀ where the Verdict of kernels/linalg/certificate.h is kCertified;
  // that verdict; the rank; a lower bound on the smallest kept singular value over the largest.
  // On CPUs alone, by kernels/linalg/row_space.h, which says what `guess` is.
  m.def(
      "row_space(Tensor gram, Tensor atol, Tensor rtol, int count, bool guess) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

FUSEDSTEP_IMPL(m) { m.impl("row_space", TORCH_BOX(&fusedstep::row_space)); }
