// The Gram matrix of rows narrower than float64 on the CPU: columns are packed into panels, then
// multiplied panel by panel.
#pragma once

#include <algorithm>

#include "kernels/common/gram.h"

namespace fusedstep::cpu {

constexpr int64_t kGramPanel = 16;  // columns

inline int64_t gram_panels(int64_t width) { return (width + kGramPanel - 1) / kGramPanel; }

// Pairs of panels (i, j) with j <= i, in the order (0, 0), (1, 0), (1, 1), (2, 0), ...
inline int64_t gram_pairs(int64_t width) {
  return gram_panels(width) * (gram_panels(width) + 1) / 2;
}

// Some rows of some matrices, packed and multiplied before the next.
struct GramPart {
  const GramRows& all;
  int64_t matrix, row;      // the first
  int64_t matrices, count;  // how many; fewer at the end
  double* packed;           // [matrices, panels, count, kGramPanel]
};

// How much is taken at once: so many blocks of rows, and where they are few so many matrices, that
// packed panels lie in the second-level cache, and that threads wait for one another seldom.
inline GramPart gram_part(const GramRows& all) {
  constexpr int64_t kPacked = 1 << 17;  // doubles
  const int64_t of_row = std::max<int64_t>(1, gram_panels(all.width) * kGramPanel);
  const int64_t blocks = std::max<int64_t>(1, kPacked / (of_row * kGramBlock));
  const int64_t count = std::max<int64_t>(1, std::min(all.count, blocks * kGramBlock));
  const int64_t matrices = std::max<int64_t>(1, kPacked / (of_row * count));
  return {.all = all,
          .matrix = 0,
          .row = 0,
          .matrices = std::min(all.batch, matrices),
          .count = count,
          .packed = nullptr};
}

// Ranges of the panels and of the pairs of all matrices of a part. All its panels are packed before
// the first pair is multiplied.
void pack_panels(const GramPart& part, int64_t begin, int64_t end);
void multiply_panels(const GramPart& part, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
