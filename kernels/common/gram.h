// The Gram matrix of rows as an order of additions, so that any instruction set and thread count
// gives the same bits.
//
// clang-format off
//   row n                    ->  block n / 256
//   an element in a block    ->  in float64, from zero, the product of a row after that of the last
//   an element               ->  what it was, then its blocks, from the first on
// clang-format on
//
// The product of two floats is exact in double, so adding it by a fused multiply-add rounds as a
// product and a sum do.
#pragma once

#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep {

constexpr int64_t kGramBlock = 256;

}  // namespace fusedstep
