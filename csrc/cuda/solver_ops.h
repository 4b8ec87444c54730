// What the ops that call cuBLAS and cuSOLVER share: the check of their argument, memory from
// torch's allocator, and batches in pieces that the libraries take.
//
// A row-major matrix is the transpose of a column-major one, which is what the libraries know.
#pragma once

#include <algorithm>
#include <cstdint>

#include "csrc/checks.h"
#include "csrc/empty.h"

namespace fusedstep::cuda {

// The libraries count in int, elements included, and XsyevBatched refuses 32768 matrices whatever
// their size.
constexpr int64_t kMostMatrices = 16384;
constexpr int64_t kMostElements = INT32_MAX;
constexpr int64_t kMostRows = 46340;  // whose square is not above kMostElements

// Calls solve(first, count) for every piece of a batch of matrices of so many elements each.
template <typename Solve>
void in_pieces(int64_t batch, int64_t elements, Solve solve) {
  if (elements == 0) {
    return;
  }
  const int64_t most = std::min(kMostMatrices, kMostElements / elements);
  for (int64_t first = 0; first < batch; first += most) {
    solve(first, std::min(most, batch - first));
  }
}

// float64 [b, n, n] of any strides; returns n.
inline int64_t require_squares(const char* function, const char* argument, const Tensor& batch) {
  require(dtype_of(batch) == Dtype::kFloat64 && is_strided(batch), function, argument, -1,
          "be a dense float64 tensor", "another dtype or layout");
  require(batch.dim() == 3, function, argument, -1, "have three dimensions", batch.dim());
  const int64_t rows = batch.size(1);
  require(batch.size(2) == rows, function, argument, -1, "be square",
          std::to_string(rows) + " by " + std::to_string(batch.size(2)));
  require(rows <= kMostRows, function, argument, -1, "have at most 46340 rows", rows);
  return rows;
}

// The matrices one after the other, to be overwritten.
inline Tensor packed_copy(const Tensor& batch) {
  Tensor copy = empty_beside(batch, {batch.size(0), batch.size(1), batch.size(2)});
  torch::stable::copy_(copy, batch);
  return copy;
}

// Zero where nothing is to be computed, too.
inline Tensor no_failures(const Tensor& batch) {
  Tensor info = empty_beside(batch, {batch.size(0)}, ScalarType::Int);
  torch::stable::zero_(info);
  return info;
}

inline int* ints(const Tensor& tensor) { return static_cast<int*>(tensor.data_ptr()); }

}  // namespace fusedstep::cuda
