// The Gram matrix of rows on the CPU: 8 x 16 elements at a time in registers.
#include "kernels/cpu/gram.h"

#include <algorithm>

namespace fusedstep::cpu {
namespace {

constexpr int kLane = 8;  // doubles of the widest register
constexpr int kLanesOfPanel = kGramPanel / kLane;
constexpr int kAtOnce = 8;  // rows of the result whose sums fit the registers

typedef double Lane __attribute__((vector_size(kLane * sizeof(double))));

template <typename Storage>
FUSEDSTEP_CLONES void pack_panel(const Storage* from, int64_t stride, int64_t count, int64_t width,
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

void pack_panels(const GramRows& r, int64_t begin, int64_t end) {
  with_storage(r.dtype, [&](auto storage) {
    const auto* rows = static_cast<const decltype(storage)*>(r.rows);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel * kGramPanel;
      pack_panel(rows + column, r.stride, r.count, std::min(kGramPanel, r.width - column),
                 r.packed + column * r.count);
    }
  });
}

void multiply_panels(const GramRows& r, int64_t begin, int64_t end) {
  int64_t row = 0;  // of the pair's first element
  while (gram_pairs(row + kGramPanel) <= begin) {
    row += kGramPanel;
  }
  int64_t column = (begin - gram_pairs(row)) * kGramPanel;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t columns = std::min(kGramPanel, r.width - column);
    for (int64_t n = 0; n < r.count; n += kGramBlock) {
      const double* a = r.packed + row * r.count + n * kGramPanel;
      const double* b = r.packed + column * r.count + n * kGramPanel;
      for (int64_t first = 0; first < kGramPanel; first += kAtOnce) {
        double out[kAtOnce * kGramPanel];
        multiply(a + first, b, std::min(kGramBlock, r.count - n), out);
        for (int64_t i = 0; i < kAtOnce && row + first + i < r.width; ++i) {
          double* to = r.gram + (row + first + i) * r.width + column;
          for (int64_t j = 0; j < columns; ++j) {
            to[j] += out[i * kGramPanel + j];
          }
        }
      }
    }
    column += kGramPanel;
    if (column > row) {
      row += kGramPanel;
      column = 0;
    }
  }
}

}  // namespace fusedstep::cpu
