// QK-Clip on the CPU: run by run, in place.
#include "kernels/optim/qk_clip.h"

namespace fusedstep::cpu {
namespace {

template <typename Storage>
FUSEDSTEP_CLONES void scale(Storage* x, int64_t count, Compute<Storage> factor) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = store_as<Storage>(load_as<Compute<Storage>>(x[i]) * factor);
  }
}

}  // namespace

void qk_clip(const Table& table, double threshold, Position begin, Position end) {
  const int64_t last = end.element > 0 ? end.chunk : end.chunk - 1;
  for (int64_t c = begin.chunk; c <= last; ++c) {
    const Chunk chunk = locate(table, c);
    const int64_t from = c == begin.chunk ? begin.element : 0;
    const int64_t to = c == end.chunk ? end.element : chunk.size;
    const Row& row = table.rows[chunk.row];
    const QkHeads& heads = static_cast<const QkHeads*>(table.groups)[chunk.row];
    with_storage(row.param_dtype, [&](auto storage) {
      using Storage = decltype(storage);
      const auto scale_run = [&](int64_t head, int64_t first, int64_t after) {
        const double factor = qk_factor(heads.max_logits[head], threshold);
        if (factor != 1) {
          scale(static_cast<Storage*>(row.param) + first, after - first,
                static_cast<Compute<Storage>>(factor));
        }
      };
      for_each_run(heads, chunk.begin + from, chunk.begin + to, scale_run);
    });
  }
}

}  // namespace fusedstep::cpu
