// The proofs of full rank on the CPU: sums over rows, then over matrices.
#pragma once

#include "kernels/common/certificate.h"

namespace fusedstep::cpu {

// Ranges of the rows of all matrices, and of the matrices. All rows come before the first matrix.
void sum_squares(const Certificates& certificates, int64_t begin, int64_t end);
void certify_matrices(const Certificates& certificates, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
