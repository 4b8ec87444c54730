// Gram matrices of rows narrower than float64 on the GPU: tile by tile and piece by piece of the
// rows, without atomics.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/linalg/gram.h"

namespace fusedstep::cuda {

constexpr int kGramTile = 64;  // rows and columns of a Gram matrix that a block takes
constexpr int kGramStep = 16;  // rows given that are multiplied between two barriers

// Tiles (i, j) with j <= i.
inline int64_t gram_tiles(int64_t width) {
  const int64_t across = (width + kGramTile - 1) / kGramTile;
  return across * (across + 1) / 2;
}

// The rows of a piece. It follows from the shape alone, so that results do, too: the cheapest of
// the splits whose blocks fill an H100's 132 multiprocessors, three at once in each, some times
// over.
inline int64_t gram_piece_rows(const GramRows& r) {
  constexpr int64_t kAtOnce = 3 * 132, kMostRounds = 8;
  // Rows that are multiplied in the time that it takes to write a tile and to read it again:
  // 65536 bytes at 3e12/s, while a row of a tile is 8192 operations at 67e12/s.
  constexpr int64_t kPiece = 180;
  const auto over = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t tiles = r.batch * gram_tiles(r.width);
  int64_t best = std::max(kGramBlock, over(r.count, kGramStep) * kGramStep);
  int64_t least = over(tiles, kAtOnce) * best;
  for (int64_t round = 1; round <= kMostRounds; ++round) {
    const int64_t pieces = std::max<int64_t>(1, round * kAtOnce / tiles);
    const int64_t rows = std::max(kGramBlock, over(r.count, pieces * kGramStep) * kGramStep);
    const int64_t cost = over(pieces * tiles, kAtOnce) * (rows + kPiece);
    if (cost < least) {
      least = cost;
      best = rows;
    }
  }
  return best;
}

inline int64_t gram_pieces(const GramRows& r) {
  return (r.count + gram_piece_rows(r) - 1) / gram_piece_rows(r);
}

// Doubles in which the tiles of the pieces wait for one another; none for a single piece.
inline int64_t gram_partials(const GramRows& r) {
  const int64_t pieces = gram_pieces(r);
  return pieces > 1 ? pieces * r.batch * gram_tiles(r.width) * kGramTile * kGramTile : 0;
}

// `rows` holds addresses on the device; batch, count and width are at least 1. Of a tile on the
// diagonal all but the upper right quarter is written.
cudaError_t gram(const GramRows& rows, double* partials, cudaStream_t stream);

}  // namespace fusedstep::cuda
