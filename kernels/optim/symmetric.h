// Products of bfloat16 matrices that are known to be symmetric, for Muon's Newton-Schulz
// iterations: of two mirrored tiles only one is computed.
//
// For CPUs with instructions that multiply pairs of bfloat16. Others, and GPUs, multiply whole
// matrices by their libraries: there this is a reference that runs, but no gain.
//
// An element is the sum, in float32, of its products in blocks of the width, one block after the
// other; within a block, pair after pair. How a pair is rounded depends on the instruction set. The
// block depends on the shape alone, so batches and numbers of threads change no bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep {

// out = alpha A Bᵀ + beta C for each of `batch` matrices, row by row without gaps.
struct SymmetricProducts {
  const BFloat16 *a, *b;  // [batch, rows, width]
  const BFloat16* c;      // [batch, rows, rows], symmetric; null: nothing is added
  BFloat16* out;          // [batch, rows, rows], none of the others
  int64_t batch, rows, width;
  float alpha, beta;
};

namespace cpu {

// Multiply-adds in a tile, and tiles on and below the diagonal of a matrix.
int64_t symmetric_tile_work(const SymmetricProducts& all);
int64_t symmetric_tiles(const SymmetricProducts& all);

// Bytes that a call of multiply_tiles for so many tiles writes; they must be aligned to 64.
int64_t symmetric_scratch(const SymmetricProducts& all, int64_t tiles);

// A range of the tiles of all matrices. Each range packs what it multiplies by itself: reading what
// another core has just written takes longer than packing it twice.
void multiply_tiles(const SymmetricProducts& all, int64_t begin, int64_t end, std::byte* scratch);

}  // namespace cpu

}  // namespace fusedstep
