// Registers what decides about rank on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "csrc/rank_ops.h"
#include "kernels/linalg/certificate.h"
#include "kernels/linalg/truncate.h"

namespace fusedstep {
namespace {

struct Kernels {
  static void certify(const Certificates& c, int32_t /*device*/) {
    share(cpu::sum_strips, c, c.batch * strips_of(c.width), kCertificateRows * c.width);
    share(cpu::certify_matrices, c, c.batch, strips_of(c.width));
  }

  static void truncate(const Truncation& t, int32_t /*device*/) {
    share(cpu::truncate, t, t.batch, t.width);
    share(cpu::scale_rows, t, t.batch * t.count, t.width);
  }

 private:
  template <typename Pass, typename Argument>
  static void share(Pass&& pass, const Argument& argument, int64_t count,
                    int64_t elements_of_each) {
    constexpr int64_t kWorthAThread = 16384;  // elements
    const int64_t grain = std::max<int64_t>(1, kWorthAThread / elements_of_each);
    torch::stable::parallel_for(0, count, grain,
                                [&](int64_t begin, int64_t end) { pass(argument, begin, end); });
  }
};

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  using Ops = fusedstep::RankOps<fusedstep::Kernels>;
  m.impl("certify", TORCH_BOX(&Ops::certify));
  m.impl("truncate_scale", TORCH_BOX(&Ops::truncate_scale));
}
