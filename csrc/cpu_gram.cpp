// Registers the Gram matrices of rows on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <new>

#include "csrc/gram_ops.h"
#include "kernels/cpu/gram.h"

namespace fusedstep {
namespace {

constexpr std::align_val_t kAlign{64};

struct Free {
  void operator()(double* p) const { ::operator delete[](p, kAlign); }
};

struct Kernels {
  static void run(const GramRows& rows, const Tensor& /*gram*/) {
    cpu::GramPart part = cpu::gram_part(rows);
    const int64_t panels = cpu::gram_panels(rows.width), pairs = cpu::gram_pairs(rows.width);
    const int64_t row_size = panels * cpu::kGramPanel;
    const std::unique_ptr<double[], Free> packed(
        new (kAlign) double[part.matrices * part.count * row_size]);
    part.packed = packed.get();
    const auto share = [&part](auto pass, int64_t count) {
      constexpr int64_t kWorthAThread = 4;
      torch::stable::parallel_for(0, count, kWorthAThread,
                                  [&](int64_t begin, int64_t end) { pass(part, begin, end); });
    };
    const int64_t matrices = part.matrices, count = part.count;
    for (; part.matrix < rows.batch; part.matrix += matrices) {
      part.matrices = std::min(matrices, rows.batch - part.matrix);
      for (part.row = 0; part.row < rows.count; part.row += count) {
        part.count = std::min(count, rows.count - part.row);
        share(cpu::pack_panels, part.matrices * panels);
        share(cpu::multiply_panels, part.matrices * pairs);
      }
    }
  }
};

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("gram_", TORCH_BOX(&fusedstep::GramOps<fusedstep::Kernels>::gram_));
}
