// Truncation of singular values on the CPU: what is kept, then the scaling of vectors.
#pragma once

#include "kernels/linalg/truncate.h"

namespace fusedstep::cpu {

// Ranges of the matrices, and of the rows of all matrices. All matrices come before the first row.
void truncate(const Truncation& truncation, int64_t begin, int64_t end);
void scale_rows(const Truncation& truncation, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
