// Gram matrices of rows on the CPU: 8 x 16 elements at a time in registers.
#include "kernels/cpu/gram.h"

#include <algorithm>

namespace fusedstep::cpu {
namespace {

constexpr int kLane = 8;  // doubles of the widest register
constexpr int kLanesOfPanel = kGramPanel / kLane;
constexpr int kAtOnce = 8;  // rows of the result whose sums fit the registers

typedef double Lane __attribute__((vector_size(kLane * sizeof(double))));

// `count` rows of a panel, of whose columns `width` are there.
template <typename Storage>
FUSEDSTEP_CLONES void pack_rows(const Storage* from, int64_t stride, int64_t count, int64_t width,
                                double* to) {
  for (int64_t n = 0; n < count; ++n, from += stride, to += kGramPanel) {
    if (width == kGramPanel) {
      for (int64_t c = 0; c < kGramPanel; ++c) {
        to[c] = load_as<double>(from[c]);
      }
    } else {
      for (int64_t c = 0; c < kGramPanel; ++c) {
        to[c] = c < width ? load_as<double>(from[c]) : 0;
      }
    }
  }
}

// The same where a column's elements are neighbours: so many rows at a time that what is read and
// what is written both lie in the first-level cache.
template <typename Storage>
FUSEDSTEP_CLONES void pack_columns(const Storage* from, int64_t stride, int64_t count,
                                   int64_t width, double* to) {
  constexpr int64_t kRows = 64;
  for (; count > 0; count -= kRows, from += kRows, to += kRows * kGramPanel) {
    const int64_t rows = std::min(kRows, count);
    for (int64_t c = 0; c < kGramPanel; ++c) {
      for (int64_t n = 0; n < rows; ++n) {
        to[n * kGramPanel + c] = c < width ? load_as<double>(from[c * stride + n]) : 0;
      }
    }
  }
}

// out[i][j] = the sum over rows of a[i] b[j]; `i` are kAtOnce neighbours.
FUSEDSTEP_EXACT_PRODUCTS FUSEDSTEP_CLONES void multiply(const double* a, const double* b,
                                                        int64_t count, double* out) {
  Lane sum[kAtOnce][kLanesOfPanel] = {};
  // Unrolled, so that the sums stay in registers, which an array's elements in a loop would not.
  for (int64_t n = 0; n < count; ++n, a += kGramPanel, b += kGramPanel) {
    Lane right[kLanesOfPanel];
    memcpy(right, b, sizeof(right));
#pragma GCC unroll 8
    for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 2
      for (int l = 0; l < kLanesOfPanel; ++l) {
        sum[i][l] += a[i] * right[l];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 2
    for (int l = 0; l < kLanesOfPanel; ++l) {
      const Lane done = sum[i][l];
      memcpy(out + i * kGramPanel + l * kLane, &done, sizeof(done));
    }
  }
}

}  // namespace

void pack_panels(const GramPart& part, int64_t begin, int64_t end) {
  const GramRows& all = part.all;
  const int64_t panels = gram_panels(all.width);
  with_storage(all.dtype, [&](auto storage) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t column = at % panels * kGramPanel;
      const int64_t width = std::min(kGramPanel, all.width - column);
      const auto* from = static_cast<const decltype(storage)*>(all.rows) +
                         (part.matrix + at / panels) * all.batch_stride;
      double* to = part.packed + at * part.count * kGramPanel;
      if (all.by_column) {
        pack_columns(from + column * all.stride + part.row, all.stride, part.count, width, to);
      } else {
        pack_rows(from + part.row * all.stride + column, all.stride, part.count, width, to);
      }
    }
  });
}

void multiply_panels(const GramPart& part, int64_t begin, int64_t end) {
  const int64_t width = part.all.width;
  const int64_t panels = gram_panels(width), pairs = gram_pairs(width);
  int64_t matrix = begin / pairs;  // of the part
  int64_t i = 0;                   // the pair is (i, j)
  while ((i + 1) * (i + 2) / 2 <= begin % pairs) {
    ++i;
  }
  int64_t j = begin % pairs - i * (i + 1) / 2;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t row = i * kGramPanel, column = j * kGramPanel;
    const int64_t columns = std::min(kGramPanel, width - column);
    const double* packed = part.packed + matrix * panels * kGramPanel * part.count;
    double* gram = part.all.gram + (part.matrix + matrix) * width * width;
    for (int64_t n = 0; n < part.count; n += kGramBlock) {
      const double* a = packed + row * part.count + n * kGramPanel;
      const double* b = packed + column * part.count + n * kGramPanel;
      for (int64_t first = 0; first < kGramPanel && row + first < width; first += kAtOnce) {
        double out[kAtOnce * kGramPanel];
        multiply(a + first, b, std::min(kGramBlock, part.count - n), out);
        for (int64_t k = 0; k < kAtOnce && row + first + k < width; ++k) {
          double* to = gram + (row + first + k) * width + column;
          for (int64_t c = 0; c < columns; ++c) {
            to[c] += out[k * kGramPanel + c];
          }
        }
      }
    }
    if (++j > i) {
      j = 0;
      i = i + 1 < panels ? i + 1 : 0;
      matrix += i == 0;
    }
  }
}

}  // namespace fusedstep::cpu
