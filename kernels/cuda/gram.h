// Gram matrices of rows narrower than float64 on the GPU: tile by tile and piece by piece of the
// rows, without atomics.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/gram.h"

namespace fusedstep::cuda {

constexpr int kGramTile = 64;  // rows and columns of a Gram matrix that a block takes
constexpr int kGramStep = 16;  // rows given that are multiplied between two barriers

// Tiles (i, j) with j <= i.
inline int64_t gram_tiles(int64_t width) {
  const int64_t across = (width + kGramTile - 1) / kGramTile;
  return across * (across + 1) / 2;
}

// The rows of a piece. It follows from the shape alone, so that results do, too: as many pieces as
// give the 132 multiprocessors of an H100 three blocks each about five times over, none below a
// block of rows.
inline int64_t gram_piece_rows(const GramRows& r) {
  constexpr int64_t kBlocks = 5 * 3 * 132;
  const int64_t pieces = std::max<int64_t>(1, kBlocks / (r.batch * gram_tiles(r.width)));
  const int64_t steps = (r.count + pieces * kGramStep - 1) / (pieces * kGramStep);
  return std::max(kGramBlock, steps * kGramStep);
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
