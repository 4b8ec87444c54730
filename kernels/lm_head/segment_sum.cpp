// Sums of rows by id on the CPU: the order of kernels/lm_head/segment_sum.h, 256 columns at a time.
#include "kernels/lm_head/segment_sum.h"

#include <algorithm>

namespace fusedstep::cpu {
namespace {

constexpr int64_t kColumns = 256;  // whose sums stay in the first-level cache

template <typename Storage>
FUSEDSTEP_CLONES void sum_piece(const Segments& s, int64_t piece) {
  const auto* rows = static_cast<const Storage*>(s.rows);
  const int64_t begin = piece_begin(piece), end = piece_end(s, piece);
  alignas(64) double sum[kColumns];
  for (int64_t column = 0; column < s.width; column += kColumns) {
    const int64_t n = std::min(kColumns, s.width - column);
    bool is_head = is_continued(s, piece);
    for (int64_t p = begin; p < end; is_head = false) {
      const int64_t id = s.ids[p];
      std::fill_n(sum, n, 0.0);
      for (; p < end && s.ids[p] == id; ++p) {
        const Storage* row = rows + s.order[p] * s.stride + column;
        for (int64_t k = 0; k < n; ++k) {
          sum[k] += load_as<double>(row[k]);
        }
      }
      if (is_head) {
        std::copy_n(sum, n, s.heads + piece * s.width + column);
      } else {
        double* of_id = s.sums + id * s.width + column;
        for (int64_t k = 0; k < n; ++k) {
          of_id[k] += sum[k];
        }
      }
    }
  }
}

}  // namespace

void sum_pieces(const Segments& s, int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto storage) {
    for (int64_t piece = begin; piece < end; ++piece) {
      sum_piece<decltype(storage)>(s, piece);
    }
  });
}

void collect_heads(const Segments& s, int64_t begin, int64_t end) {
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t heads = heads_to_collect(s, piece);
    double* of_id = s.sums + s.ids[piece_end(s, piece) - 1] * s.width;
    for (int64_t h = 1; h <= heads; ++h) {
      const double* head = s.heads + (piece + h) * s.width;
      for (int64_t k = 0; k < s.width; ++k) {
        of_id[k] += head[k];
      }
    }
  }
}

}  // namespace fusedstep::cpu
