// Loss and gradient of rows of logits as an order of operations, so that every instruction set,
// device and thread count gives the same bits.
//
// With p the softmax of a row and y its token, the gradient p - e_y is miss * direction: miss is
// 1 - p_y, and direction the softmax of all classes but y, with -1 in y's place. A token that is
// far ahead of the others takes no digit from either, as the others are compared with their own
// largest logit.
//
// clang-format off
//   class i of a row      ->  chunk i / 2048
//   element i of a chunk  ->  line i / 128, lane i % 128
//   a chunk               ->  t, the largest logit but the token's; exp(z - t), 0 for the token; the
//                             sums of these and of their squares: each lane adds up pairs of lines,
//                             and these in order, then the 128 lanes fold by halves: lane l takes
//                             lane l + 64, then l + 32, ... until lane 0 takes lane 1
//   a row                 ->  in float64, with the chunks' sums times exp(t - max t): chunk c goes to
//                             lane c % 32, each lane adds its chunks in order of c, then the lanes
//                             fold by halves
//   a direction           ->  exp(z - t) times its chunk's weight
// clang-format on
//
// On the GPU a block is a chunk, a warp two lines, and a thread has four lanes of each.
#pragma once

#include "kernels/lm_head/exp.h"
#include "kernels/lm_head/log1p.h"
#include "kernels/lm_head/root_step.h"

namespace fusedstep {

constexpr int64_t kSoftmaxChunk = 2048;
constexpr int kSoftmaxLanes = 128;
constexpr int kChunkLanes = 32;

struct SoftmaxChunk {
  double top, sum, squares;
  double weight;  // of its exponentials in the row that is written
};

// `count` rows of `classes` logits each, float32 or float64.
struct Softmax {
  void* logits;
  Dtype dtype;
  int64_t stride;  // elements from a row to the next
  int64_t classes;
  int64_t count;
  const int64_t* tokens;  // [count], in [0, classes)
  SoftmaxChunk* chunks;   // [count, chunks of a row]
  SoftmaxRow* rows;       // [count]: the results
  bool writes;            // directions times the row's scale over the logits
  RootStep root;          // what that scale is
};

FUSEDSTEP_HD int64_t chunks_of_row(const Softmax& s) {
  return (s.classes + kSoftmaxChunk - 1) / kSoftmaxChunk;
}

// Where maxima begin. It is finite: minus infinity would turn classes of that logit into NaN.
template <typename T>
constexpr T kLowest = std::is_same_v<T, float> ? -0x1.fffffep127f : -0x1.fffffffffffffp1023;

// A NaN does not count: its exponential makes the sums NaN.
template <typename T>
FUSEDSTEP_HD T larger(T a, T b) {
  return b > a ? b : a;
}

// Squares that are negligible compared with the largest, which is 1, become 0: below the normal
// numbers they would be a hundred times slower.
template <typename T>
FUSEDSTEP_HD T square_or_zero(T x) {
  constexpr T kLeast = std::is_same_v<T, float> ? 0x1p-60 : 0x1p-500;
  const T kept = x < kLeast ? 0 : x;
  return kept * kept;
}

// What the sums of a row mean, relative to exp(top): `rest` of the exponentials of all classes but
// the token, `squares` of their squares. `logit` is the token's. A `miss` below the normal numbers
// of the logits' type is 0: the token is certain.
template <typename T>
FUSEDSTEP_HD SoftmaxRow describe_row(double top, double rest, double squares, double logit) {
  const double ahead = logit - top;
  SoftmaxRow row;
  if (ahead > 0) {
    double odds = rest * exp_or_zero(-ahead) + (ahead - ahead);  // an infinite logit is an error
    odds = odds < Exp<T>::kTiny ? 0 : odds;
    row.loss = log1p_of(odds);
    row.miss = odds / (1 + odds);
  } else {
    const double hit = exp_or_zero(ahead);
    row.loss = log1p_of(rest - 1 + hit) - ahead;
    row.miss = rest / (rest + hit);
  }
  row.square = 1 + (rest == 0 ? 0 : squares / (rest * rest));
  row.scale = 1;
  return row;
}

// The weight of a chunk whose sums were multiplied by `factor`. Nothing but the token: no weight.
FUSEDSTEP_HD double weight_of(double factor, double rest, double scale) {
  return rest == 0 ? 0 : scale * (factor / rest);
}

// Times an exponential e; products below the normal numbers are 0, as exponentials are.
template <typename T>
struct Weight {
  T value, least;
  FUSEDSTEP_HD explicit Weight(double weight) : value(static_cast<T>(weight)) {
    least = Exp<T>::kTiny / (value < 0 ? -value : value);
  }
  FUSEDSTEP_HD T operator*(T e) const { return e < least ? 0 : e * value; }
};

namespace cpu {

// Chunks [begin, end) of a row: sums and, if the rows are written, what scale_chunks needs over the
// logits. Then the whole row's results; then, if the rows are written, chunks [begin, end) of it.
void sum_chunks(const Softmax& softmax, int64_t row, int64_t begin, int64_t end);
void fold_row(const Softmax& softmax, int64_t row);
void scale_chunks(const Softmax& softmax, int64_t row, int64_t begin, int64_t end);

}  // namespace cpu

}  // namespace fusedstep
