// Gram matrices on the GPU: 64 x 64 elements a block, 32 x 32 a warp, in the float64 tensor cores.
//
// The floor. Of a matrix [n, k] in float32, n k² operations (half of 2 n k²) at 67e12/s and 4 n k
// bytes at 3e12/s: on an H100 operations are the longer from k = 90 on. A diagonal tile costs three
// quarters of another and half of its own is of no use, so that of what is multiplied 0.8 is of use
// for k = 128, 0.89 for 256, 0.96 for 768.
//
// A multiprocessor does 128 multiply-adds a clock: for a row of a tile 32 clocks. In these, its
// shared memory moves 4096 bytes at most; the four warps read 4 x (32 + 32) doubles, 2048 bytes, by
// 16-byte loads without bank conflicts, one for every mma of 16 x 8 x 8, which takes a quarter of
// a multiprocessor 32 clocks; and 2 x 64 doubles are written, 1024 bytes. The second-level cache
// gives 2 x 64 floats, 512 bytes of perhaps 770. Conversion is done once for a tile, on the way to
// shared memory: of 128 floats, where 512 fit into the clocks at 16 a clock.
#include "kernels/cuda/gram.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/vector.h"

namespace fusedstep::cuda {
namespace {

constexpr int kGramThreads = 128;
constexpr int kGramBlocks = 3;  // that must fit a multiprocessor at once: up to 168 registers
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

template <typename Storage, Along along>
__global__ void __launch_bounds__(kGramThreads, kGramBlocks)
    gram_kernel(const GramRows r, double* partials, int tiles, int64_t piece_rows) {
  constexpr int kOperand = kGramStep * kPairs, kStage = 2 * kOperand;
  FUSEDSTEP_SHARED(Pair, tile, 2 * kStage);
  const int batch = static_cast<int>(r.batch), block = static_cast<int>(blockIdx.x);
  const int matrix = block / tiles % batch;
  const TilePlace at(block % tiles);
  const bool diagonal = at.i == at.j;
  const int64_t begin = block / tiles / batch * piece_rows;
  int64_t left = r.count - begin < piece_rows ? r.count - begin : piece_rows;  // rows to multiply

  const int warp = threadIdx.x / kWarp, row = warp / 2 * (kPairs / 2), column = warp % 2 * 16;
  const bool multiplies = !diagonal || row >= column;
  const int right = diagonal ? 0 : kOperand;
  Courier<Storage, along> left_courier(r, matrix, begin, int64_t{at.i} * kGramTile);
  Courier<Storage, along> right_courier(r, matrix, begin, int64_t{at.j} * kGramTile);
  constexpr int kRun = Courier<Storage, along>::kRun;
  const bool aligned =
      aligned_for(r.rows, kAccess) && r.stride % kRun == 0 && r.batch_stride % kRun == 0;
  const auto fetch = [&](int64_t rows) {
    left_courier.fetch(r, rows, aligned);
    if (!diagonal) {
      right_courier.fetch(r, rows, aligned);
    }
  };
  const auto put = [&](int stage) {
    left_courier.put(tile, stage);
    if (!diagonal) {
      right_courier.put(tile, stage + kOperand);
    }
  };

  Sums sums;
  int stage = 0;
  fetch(left);
  put(stage);
  __syncthreads();
#pragma unroll 1
  for (; left > 0; left -= kGramStep) {
    if (left > kGramStep) {
      fetch(left - kGramStep);  // is under way while this step is multiplied
    }
    if (multiplies) {
#pragma unroll
      for (int k = 0; k < kGramStep; k += 8) {
        sums.add(tile, stage + k * kPairs, row, stage + right + k * kPairs, column);
      }
    }
    stage = kStage - stage;
    if (left > kGramStep) {
      put(stage);
    }
    __syncthreads();
  }

  if (!multiplies) {
    return;
  }
  if (partials != nullptr) {
    double* to = partials + block * int64_t{kGramTile * kGramTile};
    sums.each([&](int m, int n, double* const(&x)[4]) {
      const double values[4] = {*x[0], *x[1], *x[2], *x[3]};
      Raw raw;
      memcpy(&raw, values, sizeof(values));
      store_whole<sizeof(values)>(raw, to + (2 * row + m) * kGramTile + 2 * column + n);
    });
  } else {
    const int64_t first_row = int64_t{at.i} * kGramTile + 2 * row;
    const int64_t first_column = int64_t{at.j} * kGramTile + 2 * column;
    double* to = r.gram + (matrix * r.width + first_row) * r.width + first_column;
    const auto each = [&](auto&& f) {
      sums.each([&](int m, int n, double* const(&x)[4]) {
#pragma unroll
        for (int d = 0; d < 4; ++d) {
          if (first_row + m < r.width && first_column + n + d < r.width) {
            f(to[m * r.width + n + d], *x[d]);
          }
        }
      });
    };
    // One after the other, so that no load waits for a store.
    each([](const double& before, double& x) { x += before; });
    each([](double& after, double x) { after = x; });
  }
}

// A warp is a strip of the pieces, strip s of pieces s, s + 8, ...: each lane adds two neighbours
// of a tile, piece after piece; then strip after strip.
__global__ void __launch_bounds__(kThreads)
    add_pieces_kernel(const GramRows r, const double* partials, int64_t tiles, int64_t pieces) {
  constexpr int kStrips = kThreads / kWarp, kTileSize = kGramTile * kGramTile;
  constexpr int kBlocksOfTile = kTileSize / (2 * kWarp);
  FUSEDSTEP_SHARED(Pair, of_strip, kThreads);
  const int64_t number = blockIdx.x / kBlocksOfTile;  // of the tile, over all matrices
  const int strip = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int element = (blockIdx.x % kBlocksOfTile * kWarp + lane) * 2;
  const TilePlace at(number % tiles);
  const int64_t i = int64_t{at.i} * kGramTile + element / kGramTile;
  const int64_t j = int64_t{at.j} * kGramTile + element % kGramTile;
  const bool wanted = i < r.width && j <= i;
  Pair sum = {0, 0};
  if (wanted) {
    const double* from = partials + number * kTileSize + element;
    const int64_t between = r.batch * tiles * kTileSize;
#pragma unroll 8
    for (int64_t p = strip; p < pieces; p += kStrips) {
      Raw raw;
      load_whole<sizeof(Pair)>(from + p * between, raw);
      Pair x;
      memcpy(&x, &raw, sizeof(x));
      sum.first += x.first;
      sum.second += x.second;
    }
  }
  of_strip[threadIdx.x] = sum;
  __syncthreads();
  if (strip > 0 || !wanted) {
    return;
  }
#pragma unroll
  for (int s = 1; s < kStrips; ++s) {
    const Pair x = of_strip[s * kWarp + lane];
    sum.first += x.first;
    sum.second += x.second;
  }
  double* to = r.gram + number / tiles * r.width * r.width + i * r.width + j;
  to[0] += sum.first;
  if (j < i) {
    to[1] += sum.second;
  }
}

}  // namespace

cudaError_t gram(const GramRows& r, double* partials, cudaStream_t stream) {
  const int64_t tiles = gram_tiles(r.width), pieces = gram_pieces(r);
  const auto multiply = [&](auto kernel) {
    return launch<kGramThreads>(kernel, pieces * r.batch * tiles, stream, r, partials, tiles,
                                gram_piece_rows(r));
  };
  const cudaError_t multiplied = with_storage(r.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    if constexpr (std::is_same_v<Storage, double>) {
      return cudaErrorInvalidValue;
    } else {
      return r.by_column ? multiply(gram_kernel<Storage, Along::kColumns>)
                         : multiply(gram_kernel<Storage, Along::kRows>);
    }
  });
  if (pieces == 1 || multiplied != cudaSuccess) {
    return multiplied;
  }
  const int64_t blocks = r.batch * tiles * (kGramTile * kGramTile / (2 * kWarp));
  return launch(add_pieces_kernel, blocks, stream, r, partials, tiles, pieces);
}

}  // namespace fusedstep::cuda
