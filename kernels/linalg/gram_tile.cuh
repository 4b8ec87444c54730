// A 64 x 64 tile of a Gram matrix: how rows come to shared memory, and a warp's 32 x 32 sums.
#pragma once

#include "kernels/common/launch.cuh"
#include "kernels/common/vector.cuh"
#include "kernels/linalg/gram.cuh"
#include "kernels/linalg/mma.cuh"

namespace fusedstep::cuda {

constexpr int kGramThreads = 128;
// Blocks that must fit a multiprocessor at once, three leaving a thread 168 registers, and how many
// products of 8 rows are in flight. Before compute capability 8 a multiprocessor's shared memory
// holds two blocks, and a product without float64 tensor cores takes many registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kGramBlocks = 2, kGramProducts = 1;
#else
constexpr int kGramBlocks = 3, kGramProducts = kGramStep / 8;
#endif
constexpr int kPairs = kGramTile / 2;

// Two neighbouring columns of a row: what shared memory is read and written by.
struct alignas(16) Pair {
  double first, second;
};

// Where the pair of a row lies in shared memory. The rows that a warp reads together, q to q + 3,
// fill different banks, as do the pairs that it writes together: all even ones of a row where a
// thread brings two of them, every fourth where four.
FUSEDSTEP_HD int place(int row, int pair) {
  return row * kPairs + (pair ^ (pair >> 3 & 3) ^ (row & 3) << 1);
}

// Where neighbours in memory are.
enum class Along { kRows, kColumns };

FUSEDSTEP_HD int at_most(int64_t count, int most) {
  return static_cast<int>(count < most ? count : most);
}

// What a thread brings from global to shared memory of 64 columns at every step: runs of 16 bytes.
template <typename Storage, Along along>
class Courier {
 public:
  static constexpr int kRun = kAccess / sizeof(Storage);

  // Columns from `column` on, rows of the piece that begins at `row`.
  __device__ Courier(const GramRows& r, int64_t matrix, int64_t row, int64_t column) {
    const int64_t first_row = row + row_of(0), first_column = column + column_of(0);
    from_ = static_cast<const Storage*>(r.rows) + matrix * r.batch_stride +
            (by_column ? first_column * r.stride + first_row : first_row * r.stride + first_column);
    columns_ = at_most(r.width - first_column, kGramTile);
  }

  // The next rows, of which `rows` are there; zero beyond the last row and column.
  __device__ void fetch(const GramRows& r, int64_t rows, bool aligned) {
    const int ahead = at_most(rows, kGramStep) - row_of(0);
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int across = by_column ? columns_ - l : ahead - l * kRowsOfLoad;
      const int onward = by_column ? ahead : columns_;
      const int count = across > 0 && onward > 0 && comes() ? at_most(onward, kRun) : 0;
      const int64_t between = by_column ? r.stride : kRowsOfLoad * r.stride;
      load_pack<Storage, kRun>(from_ + l * between, aligned && count == kRun, count, raw_[l]);
    }
    from_ += by_column ? kGramStep : kGramStep * r.stride;
  }

  template <typename Tile>
  __device__ void put(Tile& tile, int begin) const {
    double x[kLoads][kRun];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      widen_pack<Storage>(raw_[l], x[l]);
    }
    if constexpr (by_column) {
      if (comes()) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          tile[begin + place(row_of(0) + i, column_of(0) / 2)] = Pair{x[0][i], x[1][i]};
        }
      }
    } else {
#pragma unroll
      for (int l = 0; l < kLoads; ++l) {
#pragma unroll
        for (int i = 0; i < kRun; i += 2) {
          tile[begin + place(row_of(l), (column_of(0) + i) / 2)] = Pair{x[l][i], x[l][i + 1]};
        }
      }
    }
  }

 private:
  static constexpr bool by_column = along == Along::kColumns;
  // Loads of a thread: of both columns of a pair, or of rows that lie so far apart.
  static constexpr int kRowsOfLoad = kGramThreads * kRun / kGramTile;
  static constexpr int kLoads = by_column ? 2 : kGramStep / kRowsOfLoad;
  static constexpr int kRuns = by_column ? kGramStep / kRun : kGramTile / kRun;  // side by side

  // By column, eight threads in a row take eight pairs of columns, the next their next run.
  static __device__ bool comes() { return !by_column || threadIdx.x < kRuns * kPairs; }
  static __device__ int row_of(int l) {
    return by_column ? threadIdx.x / 8 % kRuns * kRun : threadIdx.x / kRuns + l * kRowsOfLoad;
  }
  static __device__ int column_of(int l) {
    return by_column ? (threadIdx.x % 8 + threadIdx.x / (8 * kRuns) * 8) * 2 + l
                     : threadIdx.x % kRuns * kRun;
  }

  const Storage* from_;
  int columns_;  // that are there, from the thread's first on; a tile has no more
  Raw raw_[kLoads];
};

// A warp's 32 x 32 elements. The rows and columns of an mma are numbered so that what a lane reads
// and writes are neighbours: rows g and g + 8 are 2 g and 2 g + 1 of 16, columns g of two mma side
// by side are 2 g and 2 g + 1.
struct Sums {
  double c[2][4][4] = {};

  // Adds the product of rows [8] of the tile at `a`, from pair `row` on, with those at `b`.
  template <typename Tile>
  __device__ void add(const Tile& tile, int a, int row, int b, int column) {
    const int g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
    double left[2][4], right[4][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const Pair rows = tile[a + place(4 * k + q, row + 8 * half + g)];
        left[half][2 * k] = rows.first;
        left[half][2 * k + 1] = rows.second;
        const Pair columns = tile[b + place(4 * k + q, column + 8 * half + g)];
        right[2 * half][k] = columns.first;
        right[2 * half + 1][k] = columns.second;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        multiply_add(left[i], right[j], c[i][j]);
      }
    }
  }

  // Calls f(row, column, x) for every four neighbours x; both counted from the warp's first.
  template <typename F>
  __device__ void each(F&& f) {
    const int g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        double(&even)[4] = c[i / 2][2 * half];
        double(&odd)[4] = c[i / 2][2 * half + 1];
        const int r = i % 2 * 2;
        double* const x[4] = {&even[r], &odd[r], &even[r + 1], &odd[r + 1]};
        f(16 * (i / 2) + 2 * g + i % 2, 16 * half + 4 * q, x);
      }
    }
  }
};

// The tile (i, j) that comes at `number` in the order (0, 0), (1, 0), (1, 1), (2, 0), ...
struct TilePlace {
  int i, j;
  __device__ explicit TilePlace(int64_t number) {
    int64_t row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(number) + 1) - 1) / 2);
    row -= row * (row + 1) / 2 > number;
    row += (row + 1) * (row + 2) / 2 <= number;
    i = static_cast<int>(row);
    j = static_cast<int>(number - row * (row + 1) / 2);
  }
};

}  // namespace fusedstep::cuda
