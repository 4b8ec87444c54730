// Symmetric products on the CPU: 16 x 16 elements at a time in registers.
//
// Rows of A and B are packed into panels of 16. A panel holds, for each pair of neighbours in the
// width, one register: the pairs of its 16 rows. A tile takes one register of B's panel and, one
// after the other, the 16 pairs of A's, so it reads 17 times for 16 instructions that multiply and
// add. Two panels of a block fit the first-level cache, all panels the second.
#include "kernels/optim/symmetric.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fusedstep::cpu {
namespace {

constexpr int64_t kTile = 16;         // rows of a panel, and words of the widest register
constexpr int64_t kBlock = 256;       // elements of the width
constexpr int64_t kPacked = 1 << 18;  // elements that all panels of a block have at most

typedef uint32_t Words __attribute__((vector_size(kTile * sizeof(uint32_t))));
typedef float Floats __attribute__((vector_size(kTile * sizeof(float))));

int64_t panels_of(int64_t rows) { return (rows + kTile - 1) / kTile; }

int64_t block_of(const SymmetricProducts& all) {
  const int64_t cached = kPacked / (panels_of(all.rows) * kTile) / (2 * kTile) * (2 * kTile);
  return std::min({all.width, kBlock, std::max(cached, 2 * kTile)});
}

// What a panel of a block takes; whole registers are written.
int64_t words_of_panel(const SymmetricProducts& all) {
  return (block_of(all) + 2 * kTile - 1) / (2 * kTile) * kTile * kTile;
}

// 16 rows of 16 words become columns. A perfect shuffle of all 256 words rotates the 8 bits of
// where a word is by one; after four of them the bits of its row and of its column have changed
// places.
FUSEDSTEP_HD void transpose(Words (&rows)[kTile]) {
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
    Words shuffled[kTile];
#pragma GCC unroll 8
    for (int i = 0; i < kTile / 2; ++i) {
      const Words a = rows[i], b = rows[i + kTile / 2];
      shuffled[2 * i] =
          __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      shuffled[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                    29, 14, 30, 15, 31);
    }
    memcpy(rows, shuffled, sizeof(rows));
  }
}

// `count` rows of `width` elements to a panel. What is missing is zero.
FUSEDSTEP_CLONES void pack(const BFloat16* from, int64_t stride, int64_t count, int64_t width,
                           uint32_t* panel) {
  constexpr int64_t kAtOnce = 2 * kTile;  // elements of a register
  for (int64_t n = 0; n < width; n += kAtOnce, from += kAtOnce, panel += kTile * kTile) {
    Words rows[kTile];
    if (count == kTile && width - n >= kAtOnce) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kTile; ++i) {
        memcpy(&rows[i], from + i * stride, sizeof(Words));
      }
    } else {
      memset(rows, 0, sizeof(rows));
      for (int64_t i = 0; i < count; ++i) {
        memcpy(&rows[i], from + i * stride, std::min(kAtOnce, width - n) * sizeof(BFloat16));
      }
    }
    transpose(rows);
    memcpy(panel, rows, sizeof(rows));
  }
}

// sums[i][j] += the products of row i of panel a and row j of panel b, over so many pairs.
typedef void Multiply(const uint32_t* a, const uint32_t* b, int64_t pairs, float* sums);

#if defined(__x86_64__)
// An instruction adds the products of two pairs, for a pair of A in memory and all 16 of B. It is
// written in assembly because clang 16 crashes on its intrinsic.
__attribute__((target("avx512f"))) void multiply_by_dots(const uint32_t* a, const uint32_t* b,
                                                         int64_t pairs, float* sums) {
  Floats sum[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) {  // one by one: as an array they would not stay in registers
    memcpy(&sum[i], sums + i * kTile, sizeof(Floats));
  }
  for (int64_t n = 0; n < pairs; ++n, a += kTile, b += kTile) {
    Words right;
    memcpy(&right, b, sizeof(right));
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum[i]) : "v"(right), "m"(a[i]));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) {
    memcpy(sums + i * kTile, &sum[i], sizeof(Floats));
  }
}
#endif

// The same without such instructions.
FUSEDSTEP_CLONES void multiply_widened(const uint32_t* a, const uint32_t* b, int64_t pairs,
                                       float* sums) {
  Floats sum[kTile];
  memcpy(sum, sums, sizeof(sum));
  for (int64_t n = 0; n < pairs; ++n, a += kTile, b += kTile) {
    Words right;
    memcpy(&right, b, sizeof(right));
    const auto first = reinterpret_cast<Floats>(right << 16);
    const auto second = reinterpret_cast<Floats>(right & 0xffff0000u);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      sum[i] += bit_cast<float>(a[i] << 16) * first;
      sum[i] += bit_cast<float>(a[i] & 0xffff0000u) * second;
    }
  }
  memcpy(sums, sum, sizeof(sum));
}

Multiply* fastest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16")) {
    return multiply_by_dots;
  }
#endif
  return multiply_widened;
}

// A tile of a matrix with `width` rows and columns.
struct Place {
  int64_t row, column, width;

  // Calls f(where row i is in the tile, where in the matrix, how many elements are in both).
  template <typename F>
  FUSEDSTEP_HD void each_row(const F& f) const {
    const int64_t rows = std::min(kTile, width - row), columns = std::min(kTile, width - column);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t there = (row + i) * width + column;
      if (columns == kTile) {  // a number that the compiler knows
        f(i * kTile, there, kTile);
      } else {
        f(i * kTile, there, columns);
      }
    }
  }
};

FUSEDSTEP_HD void store(const float* tile, const Place& at, BFloat16* matrix) {
  BFloat16 rounded[kTile * kTile];
  for (int64_t k = 0; k < kTile * kTile; ++k) {
    rounded[k] = round_to_bfloat16(tile[k]);
  }
  at.each_row([&](int64_t here, int64_t there, int64_t count) {
    memcpy(matrix + there, rounded + here, count * sizeof(BFloat16));
  });
}

// Writes alpha sums + beta C to a tile and to its mirror image.
FUSEDSTEP_CLONES void finish(const float* sums, Place at, float alpha, const BFloat16* c,
                             float beta, BFloat16* out) {
  float tile[kTile * kTile];
  for (int64_t k = 0; k < kTile * kTile; ++k) {
    tile[k] = alpha * sums[k];
  }
  if (c != nullptr) {
    BFloat16 added[kTile * kTile] = {};
    at.each_row([&](int64_t here, int64_t there, int64_t count) {
      memcpy(added + here, c + there, count * sizeof(BFloat16));
    });
    for (int64_t k = 0; k < kTile * kTile; ++k) {
      tile[k] += beta * widen(added[k]);
    }
  }
  store(tile, at, out);
  if (at.row != at.column) {
    Words rows[kTile];
    memcpy(rows, tile, sizeof(rows));
    transpose(rows);
    memcpy(tile, rows, sizeof(rows));
    store(tile, {at.column, at.row, at.width}, out);
  }
}

// The panels of a block of one factor, each packed when it is first needed.
class Panels {
 public:
  Panels(const SymmetricProducts& all, uint32_t* scratch)
      : all_(all), scratch_(scratch), packed_(panels_of(all.rows)) {}

  void start(const BFloat16* block, int64_t width) {
    block_ = block;
    width_ = width;
    std::fill(packed_.begin(), packed_.end(), false);
  }

  const uint32_t* operator[](int64_t panel) {
    uint32_t* const to = scratch_ + panel * words_of_panel(all_);
    if (!packed_[panel]) {
      const int64_t row = panel * kTile;
      pack(block_ + row * all_.width, all_.width, std::min(kTile, all_.rows - row), width_, to);
      packed_[panel] = true;
    }
    return to;
  }

 private:
  const SymmetricProducts& all_;
  uint32_t* scratch_;  // [panels, pairs, kTile]
  std::vector<bool> packed_;
  const BFloat16* block_ = nullptr;
  int64_t width_ = 0;
};

// Calls f(i, j, n) for the tiles at panels i and j <= i, in the order (0, 0), (1, 0), (1, 1), ...;
// n counts the calls.
template <typename F>
void for_tiles(int64_t begin, int64_t end, const F& f) {
  for (int64_t i = 0, before = 0; before < end; before += ++i) {
    for (int64_t j = std::max<int64_t>(0, begin - before); j <= std::min(i, end - before - 1);
         ++j) {
      f(i, j, before + j - begin);
    }
  }
}

}  // namespace

int64_t symmetric_tile_work(const SymmetricProducts& all) { return kTile * kTile * all.width; }

int64_t symmetric_tiles(const SymmetricProducts& all) {
  return panels_of(all.rows) * (panels_of(all.rows) + 1) / 2;
}

int64_t symmetric_scratch(const SymmetricProducts& all, int64_t tiles) {
  const int64_t factors = all.a == all.b ? 1 : 2;
  const int64_t sums = std::min(tiles, symmetric_tiles(all)) * kTile * kTile;
  return 4 * (factors * panels_of(all.rows) * words_of_panel(all) + sums);
}

void multiply_tiles(const SymmetricProducts& all, int64_t begin, int64_t end, std::byte* scratch) {
  static Multiply* const multiply = fastest();
  const int64_t tiles = symmetric_tiles(all), block = block_of(all);
  auto* const packed = reinterpret_cast<uint32_t*>(scratch);
  const int64_t words = panels_of(all.rows) * words_of_panel(all);
  Panels of_a(all, packed), others(all, packed + words);
  Panels& of_b = all.a == all.b ? of_a : others;
  auto* const sums = reinterpret_cast<float*>(packed + (all.a == all.b ? 1 : 2) * words);
  for (int64_t matrix = begin / tiles; matrix * tiles < end; ++matrix) {
    const int64_t first = std::max<int64_t>(0, begin - matrix * tiles);
    const int64_t last = std::min(tiles, end - matrix * tiles);
    const int64_t square = matrix * all.rows * all.rows, at = matrix * all.rows * all.width;
    std::fill_n(sums, (last - first) * kTile * kTile, 0.0f);
    for (int64_t n = 0; n < all.width; n += block) {
      const int64_t width = std::min(block, all.width - n);
      of_a.start(all.a + at + n, width);
      others.start(all.b + at + n, width);
      for_tiles(first, last, [&](int64_t i, int64_t j, int64_t tile) {
        float* const sum = sums + tile * kTile * kTile;
        const uint32_t* const a = of_a[i];
        multiply(a, of_b[j], (width + 1) / 2, sum);
        if (n + width == all.width) {
          finish(sum, {i * kTile, j * kTile, all.rows}, all.alpha,
                 all.c == nullptr ? nullptr : all.c + square, all.beta, all.out + square);
        }
      });
    }
  }
}

}  // namespace fusedstep::cpu
