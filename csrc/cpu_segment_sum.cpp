// Registers the sums of rows by id on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "csrc/segment_sum_ops.h"
#include "kernels/lm_head/segment_sum.h"

namespace fusedstep {
namespace {

struct Kernels {
  static void require_in_range(const char* function, const Segments& s, int64_t num_rows,
                               int64_t num_ids) {
    for (int64_t p = 0; p < s.count; ++p) {
      require(s.order[p] >= 0 && s.order[p] < num_rows, function, "order", p, "be a row's number",
              s.order[p]);
      require(s.ids[p] >= (p > 0 ? s.ids[p - 1] : 0) && s.ids[p] < num_ids, function, "ids", p,
              "ascend from 0 or more to less than the number of sums", s.ids[p]);
    }
  }

  static void run(const Segments& s, int32_t /*device*/) {
    constexpr int64_t kWorthAThread = 16384;  // elements
    const int64_t grain = std::max<int64_t>(1, kWorthAThread / (kPiece * s.width));
    for (const auto pass : {cpu::sum_pieces, cpu::collect_heads}) {
      torch::stable::parallel_for(0, pieces_of(s.count), grain,
                                  [&](int64_t begin, int64_t end) { pass(s, begin, end); });
    }
  }
};

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("segment_sum_", TORCH_BOX(&fusedstep::SegmentSumOps<fusedstep::Kernels>::segment_sum_));
}
