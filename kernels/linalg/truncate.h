// Singular values below the tolerance count as zero: what the others scale vectors by, their number
// and their range. Maxima, minima and counts do not depend on an order.
#pragma once

#include "kernels/linalg/certificate.h"

namespace fusedstep {

struct Truncation {
  const double* values;       // [batch, width], of any sign and in any order
  const double* vectors;      // [batch, count, width], by strides, in elements
  const double *atol, *rtol;  // [batch]
  int64_t batch, count, width;
  int64_t batch_stride, row_stride, column_stride;
  int64_t gram_count;  // 0; else the values are eigenvalues of Gram matrices of so many rows
  double* inverses;    // [batch, width]: room for the factors
  double* scaled;      // [batch, count, width]: each column times the inverse of its value, or zero
  int64_t* rank;       // [batch]: how many singular values are kept
  double* rcond;       // [batch]: the smallest of those over the largest; 0 if there are none
};

// The singular value that belongs to a value.
FUSEDSTEP_HD double size_of(const Truncation& t, double value) {
  if (t.gram_count == 0) {
    return value < 0 ? -value : value;
  }
  return value > 0 ? std::sqrt(value) : value <= 0 ? 0 : value;  // a NaN stays one
}

// Only those eigenvalues of a Gram matrix that exceed its rounding errors mean anything.
FUSEDSTEP_HD double threshold_of(const Truncation& t, int64_t matrix, double largest) {
  const double rtol = t.rtol[matrix];
  const double noise = t.gram_count > 0 ? std::sqrt(gram_error(t.gram_count, t.width)) : 0;
  return tolerance_of(t.atol[matrix], t.gram_count > 0 ? nan_max(rtol, noise) : rtol, largest);
}

FUSEDSTEP_HD double inverse_of(const Truncation& t, double value, double threshold) {
  return size_of(t, value) > threshold ? 1 / value : 0;
}

namespace cpu {

// Ranges of the matrices, and of the rows of all matrices. All matrices come before the first row.
void truncate(const Truncation& truncation, int64_t begin, int64_t end);
void scale_rows(const Truncation& truncation, int64_t begin, int64_t end);

}  // namespace cpu

}  // namespace fusedstep
