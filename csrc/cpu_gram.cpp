// The Gram matrix of rows as an op, on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include "csrc/checks.h"
#include "kernels/cpu/gram.h"

namespace fusedstep {
namespace {

constexpr std::align_val_t kAlign{64};

struct Free {
  void operator()(double* p) const { ::operator delete[](p, kAlign); }
};

void gram_(const Tensor& gram, const Tensor& rows) {
  constexpr const char* kFunction = "gram_";
  require(dtype_of(gram) == Dtype::kFloat64 && is_strided(gram) && gram.dim() == 2 &&
              gram.size(0) == gram.size(1) && is_contiguous(gram),
          kFunction, "gram", -1, "be a contiguous square of float64", "something else");
  const int64_t width = gram.size(1);
  const Dtype dtype = require_rows(kFunction, rows, width, "be as wide as gram");
  require(dtype != Dtype::kFloat64, kFunction, "rows", -1, "be narrower than float64", "float64");
  const int64_t panels = cpu::gram_panels(width);
  const int64_t at_once = std::min(cpu::gram_rows_at_once(width), rows.size(0));
  const std::unique_ptr<double[], Free> packed(
      new (kAlign) double[panels * at_once * cpu::kGramPanel]);
  const auto* const data = static_cast<const std::byte*>(rows.data_ptr());
  const int64_t row_bytes = rows.stride(0) * (dtype == Dtype::kFloat32 ? 4 : 2);
  for (int64_t n = 0; n < rows.size(0); n += at_once) {
    const cpu::GramRows some{.rows = data + n * row_bytes,
                             .dtype = dtype,
                             .stride = rows.stride(0),
                             .width = width,
                             .count = std::min(at_once, rows.size(0) - n),
                             .packed = packed.get(),
                             .gram = static_cast<double*>(gram.data_ptr())};
    const auto share = [&](auto pass, int64_t count) {
      constexpr int64_t kWorthAThread = 4;
      torch::stable::parallel_for(0, count, kWorthAThread,
                                  [&](int64_t begin, int64_t end) { pass(some, begin, end); });
    };
    share(cpu::pack_panels, panels);
    share(cpu::multiply_panels, cpu::gram_pairs(width));
  }
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) { m.impl("gram_", TORCH_BOX(&fusedstep::gram_)); }
