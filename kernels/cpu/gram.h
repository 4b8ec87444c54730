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

// Rows that are packed together: so many blocks of them that packed panels lie in the second-level
// cache, and that threads wait for one another seldom.
inline int64_t gram_rows_at_once(int64_t width) {
  constexpr int64_t kPacked = 1 << 17;  // doubles
  const int64_t of_block = gram_panels(width) * kGramPanel * kGramBlock;
  return kGramBlock * std::max<int64_t>(1, kPacked / std::max<int64_t>(1, of_block));
}

// At most gram_rows_at_once rows, one every `stride` elements.
struct GramRows {
  const void* rows;
  Dtype dtype;  // not float64
  int64_t stride, width, count;
  double* packed;  // [panels, count, kGramPanel]
  double* gram;    // [width, width], of which the pairs of panels are written
};

// Ranges of panels and of pairs. All panels are packed before the first pair is multiplied.
void pack_panels(const GramRows& rows, int64_t begin, int64_t end);
void multiply_panels(const GramRows& rows, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
