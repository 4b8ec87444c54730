// Truncation of singular values on the CPU.
#include "kernels/linalg/truncate.h"

namespace fusedstep::cpu {

void truncate(const Truncation& t, int64_t begin, int64_t end) {
  for (int64_t matrix = begin; matrix < end; ++matrix) {
    const double* values = t.values + matrix * t.width;
    double* inverses = t.inverses + matrix * t.width;
    double largest = 0;
    for (int64_t i = 0; i < t.width; ++i) {
      largest = nan_max(largest, size_of(t, values[i]));
    }
    const double threshold = threshold_of(t, matrix, largest);
    double smallest = largest;
    int64_t rank = 0;
    for (int64_t i = 0; i < t.width; ++i) {
      const double size = size_of(t, values[i]);
      inverses[i] = inverse_of(t, values[i], threshold);
      if (size > threshold) {
        ++rank;
        smallest = size < smallest ? size : smallest;
      }
    }
    t.rank[matrix] = rank;
    t.rcond[matrix] = rank > 0 ? smallest / largest : 0;
  }
}

FUSEDSTEP_CLONES void scale_rows(const Truncation& t, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) {
    const int64_t matrix = at / t.count;
    const double* from =
        t.vectors + matrix * t.batch_stride + (at - matrix * t.count) * t.row_stride;
    const double* inverses = t.inverses + matrix * t.width;
    double* to = t.scaled + at * t.width;
    if (t.column_stride == 1) {
      for (int64_t i = 0; i < t.width; ++i) {
        to[i] = from[i] * inverses[i];
      }
    } else {
      for (int64_t i = 0; i < t.width; ++i) {
        to[i] = from[i * t.column_stride] * inverses[i];
      }
    }
  }
}

}  // namespace fusedstep::cpu
