// Registers the pseudo-inverses of tiny matrices on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "csrc/tiny_pinv_ops.h"
#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep {
namespace {

struct Kernels {
  static void run(const TinyPinv& p, int32_t /*device*/) {
    constexpr int64_t kWorthAThread = 65536;  // operations, about
    const int64_t k = std::min(p.rows, p.columns), operations = 3 * k * p.rows * p.columns;
    constexpr int64_t kAtOnce = 8;  // which the kernel takes in the time of one
    const int64_t grain = std::max(kAtOnce, kWorthAThread / operations / kAtOnce * kAtOnce);
    torch::stable::parallel_for(0, p.count, grain,
                                [&](int64_t begin, int64_t end) { cpu::tiny_pinv(p, begin, end); });
  }
};

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("pinv_tiny", TORCH_BOX(&fusedstep::TinyPinvOps<fusedstep::Kernels>::pinv_tiny));
}
