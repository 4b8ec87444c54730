// Registers the Gram matrices of rows on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <new>

#include "csrc/gram_ops.h"
#include "kernels/linalg/gram.h"

namespace fusedstep {
namespace {

constexpr std::align_val_t kAlign{64};

struct Free {
  void operator()(double* p) const { ::operator delete[](p, kAlign); }
};

struct Kernels {
  static void run(const GramRows& rows, const Tensor& /*gram*/) {
    constexpr int64_t kWorthAThread = 4;
    torch::stable::parallel_for(0, rows.batch * cpu::gram_pairs(rows.width), kWorthAThread,
                                [&](int64_t begin, int64_t end) {
                                  const std::unique_ptr<double[], Free> scratch(
                                      new (kAlign) double[cpu::gram_scratch(rows)]);
                                  cpu::add_pairs(rows, begin, end, scratch.get());
                                });
  }
};

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("gram_", TORCH_BOX(&fusedstep::GramOps<fusedstep::Kernels>::gram_));
}
