// The global norm as an order of operations, so that every device and thread count gives the same
// bits.
//
// clang-format off
//   element i of a chunk  ->  row i / 256, lane i % 256
//   rows of a chunk       ->  8 strips of ceil(rows / 8) consecutive rows; the last may be shorter
//                             or empty
//   a strip               ->  each lane adds its elements from the first row to the last, then the
//                             256 lanes fold by halves: lane l takes lane l + 128, then l + 64, ...
//                             until lane 0 takes lane 1
//   a chunk               ->  its strips, in order
//                             (up to here in float32; in float64 for float64 tensors)
//   all chunks            ->  in float64: chunk c goes to lane c % 256, each lane adds its chunks
//                             in order of c, then the lanes fold by halves as above
// clang-format on
//
// On the GPU a warp is a strip and a thread holds 8 lanes; on the CPU the lanes of a strip fit
// the vector registers.
#pragma once

#include <cmath>

#include "kernels/common/reduce.h"
#include "kernels/optim/table.h"

namespace fusedstep {

constexpr int kLanes = 256;
constexpr int kStrips = 8;

enum class Norm : uint8_t { kTwo, kOne, kInf };

FUSEDSTEP_HD int rows_of(int32_t chunk_size) { return (chunk_size + kLanes - 1) / kLanes; }
FUSEDSTEP_HD int rows_of_strip(int32_t chunk_size) {
  return (rows_of(chunk_size) + kStrips - 1) / kStrips;
}

template <Norm norm, typename T>
FUSEDSTEP_HD T combine(T a, T b) {
  if constexpr (norm == Norm::kInf) {
    return nan_max(a, b);
  } else {
    return a + b;
  }
}

template <Norm norm, typename T>
FUSEDSTEP_HD T accumulate(T sum, T x) {
  if constexpr (norm == Norm::kTwo) {
    return sum + x * x;
  } else {
    return combine<norm>(sum, x < 0 ? -x : x);
  }
}

// A float32 partial overflows from elements near 1e19 on, where the norm itself is still finite.
// Such a chunk is summed again with its elements scaled by 2^-96, and the result is scaled back in
// float64. The scaling is exact for all elements that are not too small to count. If the result is
// not finite even then, an element was not.
template <typename T>
FUSEDSTEP_HD T rescue_scale() {
  return static_cast<T>(0x1p-96);
}

template <Norm norm>
FUSEDSTEP_HD double undo_rescue(double partial) {
  return norm == Norm::kTwo ? partial * 0x1p192 : partial * 0x1p96;
}

// The norm from the folded partials, of gradients that were multiplied by `grad_scale`.
template <Norm norm>
FUSEDSTEP_HD double finish(double folded, double grad_scale) {
  return (norm == Norm::kTwo ? std::sqrt(folded) : folded) / grad_scale;
}

// Calls f with the norm as a compile-time constant.
template <typename F>
auto with_norm(Norm norm, F&& f) {
  switch (norm) {
    case Norm::kOne:
      return f(std::integral_constant<Norm, Norm::kOne>{});
    case Norm::kInf:
      return f(std::integral_constant<Norm, Norm::kInf>{});
    default:
      return f(std::integral_constant<Norm, Norm::kTwo>{});
  }
}

namespace cpu {

// Writes partials[...] of the chunks [begin, end), from the first to the last.
void norm_chunks(const Table& table, Norm norm, int64_t begin, int64_t end, double* partials);

// The norm of gradients that were multiplied by *grad_scale (null: 1), in float64.
double fold_partials(Norm norm, const double* partials, int64_t count, const float* grad_scale);

}  // namespace cpu

}  // namespace fusedstep
