// Newton's step to the root of one token's loss minus a constant, and what it needs from a row of
// logits.
//
// The gradient miss * direction xᵀ of one token (kernels/lm_head/softmax.h) with the hidden vector
// x has rank 1, so its pseudo-inverse is its transpose over its squared norm, and the step is (loss
// - constant) gradient / |gradient|² ("Language Mixers III: Optimization").
#pragma once

#include <cstdint>

#include "kernels/common/macros.h"

namespace fusedstep {

struct SoftmaxRow {
  double loss;    // -log p_y
  double miss;    // 1 - p_y
  double square;  // |direction|², between 1 and 2
  double scale;   // by which what is written is multiplied
};

// Rows take their steps one after another where `gram` is given, which holds the hidden vectors'
// inner products in the logits' type: row n is brought up to date by the rows i < n that were
// written, z_n -= gram[n, i] * row i, in order of i.
struct RootStep {
  const double* squares;  // [count] of the hidden vectors' norms; null: no step, a scale of 1
  double loss_constant;
  bool uphill;  // whether a loss below the constant is to rise
  const void* gram;
  int64_t gram_stride;  // elements from a row to the next
};

// The factor of direction xᵀ; 0 for a gradient of 0.
FUSEDSTEP_HD double root_scale(const SoftmaxRow& row, double square, const RootStep& root) {
  const double above = row.loss - root.loss_constant;
  const double fall = root.uphill || above > 0 ? above : 0;
  const double slope = row.miss * row.square * square;
  return slope > 0 ? fall / slope : 0;
}

}  // namespace fusedstep
