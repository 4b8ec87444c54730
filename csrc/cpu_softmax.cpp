// Registers loss and gradient of rows of logits on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "csrc/softmax_ops.h"
#include "kernels/lm_head/softmax.h"

namespace fusedstep {
namespace {

constexpr int64_t kWorthAThread = 16384;  // logits

void by_rows(const Softmax& s) {
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / s.classes);
  const int64_t chunks = chunks_of_row(s);
  torch::stable::parallel_for(0, s.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      cpu::sum_chunks(s, row, 0, chunks);
      cpu::fold_row(s, row);
      if (s.writes) {
        cpu::scale_chunks(s, row, 0, chunks);  // which are in the cache
      }
    }
  });
}

// All threads at one row; of the next they begin with what they wrote of it.
void by_chunks(const Softmax& s) {
  constexpr int64_t kGrain = kWorthAThread / kSoftmaxChunk;
  for (int64_t row = 0; row < s.count + s.writes; ++row) {
    torch::stable::parallel_for(0, chunks_of_row(s), kGrain, [&](int64_t begin, int64_t end) {
      if (s.writes && row > 0) {
        cpu::scale_chunks(s, row - 1, begin, end);
      }
      if (row < s.count) {
        cpu::sum_chunks(s, row, begin, end);
      }
    });
    if (row < s.count) {
      cpu::fold_row(s, row);
    }
  }
}

struct Kernels {
  static void require_in_range(const char* function, const Softmax& s) {
    for (int64_t n = 0; n < s.count; ++n) {
      require(s.tokens[n] >= 0 && s.tokens[n] < s.classes, function, "tokens", n,
              "be a class's number", s.tokens[n]);
    }
  }

  static void run(const Softmax& s, const Tensor& /*logits*/) {
    if (s.root.gram == nullptr && s.count >= torch::stable::get_num_threads()) {
      by_rows(s);
    } else {
      by_chunks(s);
    }
  }
};

using Ops = SoftmaxOps<Kernels>;

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("softmax_losses", TORCH_BOX(&fusedstep::Ops::softmax_losses));
  m.impl("softmax_directions_", TORCH_BOX(&fusedstep::Ops::softmax_directions_));
  m.impl("root_steps_", TORCH_BOX(&fusedstep::Ops::root_steps_));
}
