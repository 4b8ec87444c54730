// What the batched calls of cuBLAS need: the address of every matrix, and unit matrices to solve
// against.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fusedstep::cuda {

// `count` matrices of `rows` by `rows` in `factors`, and as many in `units`, one after the other.
struct UnitMatrices {
  int64_t rows, count;
  double* factors;
  double* units;  // becomes ones on the diagonals, zeros elsewhere
  double** factor_at;
  double** unit_at;
};

// `matrices` holds addresses on the device; rows and count are at least 1.
cudaError_t unit_matrices(const UnitMatrices& matrices, cudaStream_t stream);

}  // namespace fusedstep::cuda
