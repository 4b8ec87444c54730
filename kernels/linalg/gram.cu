// Gram matrices on the GPU: 64 x 64 elements a block, 32 x 32 a warp, in the float64 tensor cores.
//
// The floor. Of a matrix [n, k] in float32, n k² operations (half of 2 n k²) at 67e12/s and 4 n k
// bytes at 3e12/s: on an H100 operations are the longer from k = 90 on. A diagonal tile costs three
// quarters of another and half of its elements are not needed, so the useful share of the products
// is 0.8 for k = 128, 0.89 for 256, 0.96 for 768.
//
// A multiprocessor does 128 multiply-adds a clock: for a row of a tile 32 clocks. In these, its
// shared memory moves 4096 bytes at most; the four warps read 4 x (32 + 32) doubles, 2048 bytes, by
// 16-byte loads without bank conflicts, one for every mma of 16 x 8 x 8, which takes a quarter of
// a multiprocessor 32 clocks; and 2 x 64 doubles are written, 1024 bytes. The second-level cache
// gives 2 x 64 floats, 512 bytes of perhaps 770. Conversion is done once for a tile, on the way to
// shared memory: of 128 floats, where 512 fit into the clocks at 16 a clock.
#include "kernels/common/launch.cuh"
#include "kernels/common/vector.cuh"
#include "kernels/linalg/gram.cuh"
#include "kernels/linalg/gram_tile.cuh"

namespace fusedstep::cuda {
namespace {

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
#pragma unroll kGramProducts
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
