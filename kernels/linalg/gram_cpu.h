// Gram matrices of rows narrower than float64 on the CPU: columns are packed into panels, and
// panels multiplied two by two.
#pragma once

#include <algorithm>

#include "kernels/linalg/gram.h"

namespace fusedstep::cpu {

constexpr int64_t kGramPanel = 16;  // columns

inline int64_t gram_panels(int64_t width) { return (width + kGramPanel - 1) / kGramPanel; }

// Pairs of panels (i, j) with j <= i, in the order (0, 0), (1, 0), (1, 1), (2, 0), ...
inline int64_t gram_pairs(int64_t width) {
  return gram_panels(width) * (gram_panels(width) + 1) / 2;
}

// Rows that are packed at once: so many blocks of them that all panels fit the second-level cache.
inline int64_t gram_rows_at_once(const GramRows& all) {
  constexpr int64_t kPacked = 1 << 17;  // doubles
  const int64_t of_block = gram_panels(all.width) * kGramPanel * kGramBlock;
  return std::min(all.count, kGramBlock * std::max<int64_t>(1, kPacked / of_block));
}

// Doubles that a call of add_pairs writes; aligned to 64 bytes it is fastest.
inline int64_t gram_scratch(const GramRows& all) {
  return gram_panels(all.width) * kGramPanel * gram_rows_at_once(all);
}

// A range of the pairs of all matrices, none of them empty. Each range packs what it multiplies by
// itself: to read what another core has just written takes longer than to pack it twice.
void add_pairs(const GramRows& all, int64_t begin, int64_t end, double* scratch);

}  // namespace fusedstep::cpu
