// The proofs of full rank on the CPU: sums over strips, then over matrices.
#pragma once

#include "kernels/linalg/certificate.h"

namespace fusedstep::cpu {

// Ranges of the strips of all matrices, and of the matrices. All strips come before the first
// matrix.
void sum_strips(const Certificates& certificates, int64_t begin, int64_t end);
void certify_matrices(const Certificates& certificates, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
