// The op symmetric_product: products of bfloat16 matrices that are known to be symmetric. For CPUs
// alone, so it calls the kernel itself instead of a function of csrc/device.h.
#include "kernels/optim/symmetric.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "csrc/checks.h"

namespace fusedstep {
namespace {

void multiply(const SymmetricProducts& all) {
  constexpr int64_t kWorthAThread = 1 << 19;  // multiply-adds
  constexpr std::align_val_t kAlign{64};
  constexpr auto kFree = [](std::byte* p) { ::operator delete[](p, kAlign); };
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / cpu::symmetric_tile_work(all));
  torch::stable::parallel_for(
      0, all.batch * cpu::symmetric_tiles(all), grain, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<std::byte[], decltype(kFree)> scratch(
            new (kAlign) std::byte[cpu::symmetric_scratch(all, end - begin)]);
        cpu::multiply_tiles(all, begin, end, scratch.get());
      });
}

Tensor symmetric_product(const Tensor& A, const Tensor& B, std::optional<Tensor> C, double beta,
                         double alpha) {
  constexpr const char* kFunction = "symmetric_product";
  const int64_t dim = A.dim();
  const Arg a(kFunction, "A", A), b(kFunction, "B", B);
  a.is({ScalarType::BFloat16}).contiguous().must(dim == 2 || dim == 3, "have 2 or 3 dimensions");
  a.must(A.size(dim - 1) > 0, "have columns");
  b.is({ScalarType::BFloat16})
      .contiguous()
      .must(std::ranges::equal(B.sizes(), A.sizes()), "have the shape of A")
      .on_device_of(A);
  std::vector<int64_t> sizes(A.sizes().begin(), A.sizes().end());
  const int64_t width = std::exchange(sizes[dim - 1], sizes[dim - 2]);
  if (C.has_value()) {
    Arg(kFunction, "C", *C)
        .is({ScalarType::BFloat16})
        .contiguous()
        .must(std::ranges::equal(C->sizes(), sizes), "have the shape of A Bᵀ")
        .on_device_of(A);
  }
  const Tensor out = empty_on(A, sizes, ScalarType::BFloat16);
  if (out.numel() > 0) {
    multiply({.a = data_of<BFloat16>(A),
              .b = data_of<BFloat16>(B),
              .c = data_or_null<BFloat16>(C),
              .out = data_of<BFloat16>(out),
              .batch = dim == 2 ? 1 : A.size(0),
              .rows = sizes[dim - 1],
              .width = width,
              .alpha = static_cast<float>(alpha),
              .beta = static_cast<float>(beta)});
  }
  return out;
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // alpha A Bᵀ + beta C, which the caller knows to be symmetric, as C is; of bfloat16 matrices
  // [m, n] or batches [k, m, n].
  m.def("symmetric_product(Tensor A, Tensor B, Tensor? C, float beta, float alpha) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("symmetric_product", TORCH_BOX(&fusedstep::symmetric_product));
}
