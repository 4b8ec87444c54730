// Gram matrices of rows narrower than float64: their arguments, and the order of additions.
//
// On the CPU, so that any instruction set, thread count and size of batch gives the same bits:
//
// clang-format off
//   row n                    ->  block n / 256
//   an element in a block    ->  in float64, from zero, the product of a row after that of the last
//   an element               ->  what it was, then its blocks, from the first on
// clang-format on
//
// On a GPU a tensor core adds the products of several rows at once, in an unspecified order: the
// same bits from run to run on the same kind of device, and those of the CPU to rounding. What is
// fixed there is which rows are added together: pieces of rows (kernels/linalg/gram.cuh), each from
// zero; then every eighth piece, from the first on; then these eight sums in order, and what the
// element was.
//
// The product of two floats is exact in double, so adding it by a fused multiply-add rounds as a
// product and a sum do.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep {

constexpr int64_t kGramBlock = 256;

// `batch` matrices of `count` rows. Rows are contiguous in memory and lie `stride` elements apart;
// if by_column, that holds for columns.
struct GramRows {
  const void* rows;
  Dtype dtype;  // not float64
  bool by_column;
  int64_t batch, count, width;
  int64_t batch_stride, stride;  // in elements
  double* gram;                  // [batch, width, width]; above the diagonal, only some is written
};

// How far the eigenvalues of a computed Gram matrix may be off, relative to the largest: eight
// times the size that rounding errors have in practice, which grows as the square root of the
// length of a sum; the worst case grows as the length and is never met.
FUSEDSTEP_HD double gram_error(int64_t count, int64_t width) {
  return 0x1p-50 * (std::sqrt(static_cast<double>(count)) + static_cast<double>(width));
}

// On the CPU columns are packed into panels, and panels multiplied two by two.
namespace cpu {

// Pairs of panels of a matrix with so many columns.
int64_t gram_pairs(int64_t width);

// Doubles that a call of add_pairs writes; aligned to 64 bytes it is fastest.
int64_t gram_scratch(const GramRows& all);

// A range of the pairs of all matrices, none of them empty. Each range packs what it multiplies by
// itself: reading what another core has just written takes longer than packing it twice.
void add_pairs(const GramRows& all, int64_t begin, int64_t end, double* scratch);

}  // namespace cpu

}  // namespace fusedstep
