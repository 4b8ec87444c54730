// Gram matrices of rows on the CPU: 8 x 16 elements at a time in registers.
#include "kernels/linalg/gram.h"

#include <algorithm>
#include <vector>

namespace fusedstep::cpu {
namespace {

constexpr int64_t kGramPanel = 16;  // columns
constexpr int kLane = 8;            // doubles of the widest register
constexpr int kLanesOfPanel = kGramPanel / kLane;
constexpr int kAtOnce = 8;  // rows of the result whose sums fit the registers

int64_t gram_panels(int64_t width) { return (width + kGramPanel - 1) / kGramPanel; }

// Rows that are packed at once: so many blocks of them that all panels fit the second-level cache.
int64_t gram_rows_at_once(const GramRows& all) {
  constexpr int64_t kPacked = 1 << 17;  // doubles
  const int64_t of_block = gram_panels(all.width) * kGramPanel * kGramBlock;
  return std::min(all.count, kGramBlock * std::max<int64_t>(1, kPacked / of_block));
}

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

// The panels of some rows of a matrix, each packed when it is first needed.
class Panels {
 public:
  Panels(const GramRows& all, double* scratch)
      : all_(all), scratch_(scratch), packed_(gram_panels(all.width)) {}

  void start(int64_t matrix, int64_t row, int64_t count) {
    at_ = matrix * all_.batch_stride + row * (all_.by_column ? 1 : all_.stride);
    count_ = count;
    std::fill(packed_.begin(), packed_.end(), false);
  }

  const double* operator[](int64_t panel) {
    double* to = scratch_ + panel * kGramPanel * count_;
    if (!packed_[panel]) {
      pack(panel * kGramPanel, to);
      packed_[panel] = true;
    }
    return to;
  }

 private:
  void pack(int64_t column, double* to) const {
    with_storage(all_.dtype, [&](auto storage) {
      const auto* from = static_cast<const decltype(storage)*>(all_.rows) + at_;
      const int64_t width = std::min(kGramPanel, all_.width - column);
      if (all_.by_column) {
        pack_columns(from + column * all_.stride, all_.stride, count_, width, to);
      } else {
        pack_rows(from + column, all_.stride, count_, width, to);
      }
    });
  }

  const GramRows& all_;
  double* scratch_;  // [panels, count, kGramPanel]
  std::vector<bool> packed_;
  int64_t at_ = 0, count_ = 0;
};

// Adds to gram[row..][column..] the products of `count` rows of the panels a and b.
void add_pair(const double* a, const double* b, int64_t count, int64_t row, int64_t column,
              int64_t width, double* gram) {
  const int64_t columns = std::min(kGramPanel, width - column);
  for (int64_t n = 0; n < count;
       n += kGramBlock, a += kGramBlock * kGramPanel, b += kGramBlock * kGramPanel) {
    for (int64_t first = 0; first < kGramPanel && row + first < width; first += kAtOnce) {
      double out[kAtOnce * kGramPanel];
      multiply(a + first, b, std::min(kGramBlock, count - n), out);
      for (int64_t k = 0; k < kAtOnce && row + first + k < width; ++k) {
        double* to = gram + (row + first + k) * width + column;
        for (int64_t c = 0; c < columns; ++c) {
          to[c] += out[k * kGramPanel + c];
        }
      }
    }
  }
}

}  // namespace

// (i, j) with j <= i, in the order (0, 0), (1, 0), (1, 1), (2, 0), ...
int64_t gram_pairs(int64_t width) { return gram_panels(width) * (gram_panels(width) + 1) / 2; }

int64_t gram_scratch(const GramRows& all) {
  return gram_panels(all.width) * kGramPanel * gram_rows_at_once(all);
}

void add_pairs(const GramRows& all, int64_t begin, int64_t end, double* scratch) {
  const int64_t pairs = gram_pairs(all.width), at_once = gram_rows_at_once(all);
  Panels panels(all, scratch);
  for (int64_t matrix = begin / pairs; matrix * pairs < end; ++matrix) {
    const int64_t first = std::max<int64_t>(0, begin - matrix * pairs);
    const int64_t last = std::min(pairs, end - matrix * pairs);
    double* gram = all.gram + matrix * all.width * all.width;
    for (int64_t row = 0; row < all.count; row += at_once) {
      const int64_t count = std::min(at_once, all.count - row);
      panels.start(matrix, row, count);
      for (int64_t i = 0; i * (i + 1) / 2 < last; ++i) {
        const int64_t of_row = i * (i + 1) / 2;
        for (int64_t j = std::max<int64_t>(0, first - of_row); j <= std::min(i, last - of_row - 1);
             ++j) {
          const double* const a = panels[i];
          add_pair(a, panels[j], count, i * kGramPanel, j * kGramPanel, all.width, gram);
        }
      }
    }
  }
}

}  // namespace fusedstep::cpu
