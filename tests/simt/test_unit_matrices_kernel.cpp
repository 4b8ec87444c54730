// The addresses of a batch and its unit matrices, for matrices of any size.
#include <algorithm>
#include <memory>

#include "kernels/linalg/unit_matrices.cuh"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace fusedstep {
namespace {

// Arrays of exact size, so that the sanitizer sees every access out of bounds.
void test(int64_t rows, int64_t count) {
  const int64_t elements = rows * rows;
  const auto factors = std::make_unique<double[]>(static_cast<size_t>(count * elements));
  const auto units = std::make_unique<double[]>(static_cast<size_t>(count * elements));
  const auto addresses = std::make_unique<double*[]>(static_cast<size_t>(2 * count));
  std::fill_n(units.get(), count * elements, 7.0);
  const cuda::UnitMatrices matrices{.rows = rows,
                                    .count = count,
                                    .factors = factors.get(),
                                    .units = units.get(),
                                    .factor_at = addresses.get(),
                                    .unit_at = addresses.get() + count};
  CHECK(cuda::unit_matrices(matrices, nullptr) == cudaSuccess);
  for (int64_t i = 0; i < count; ++i) {
    CHECK(addresses[i] == factors.get() + i * elements);
    CHECK(addresses[count + i] == units.get() + i * elements);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < rows; ++column) {
        CHECK(units[i * elements + row * rows + column] == (row == column ? 1.0 : 0.0));
      }
    }
  }
}

}  // namespace
}  // namespace fusedstep

int main() {
  simt::for_seeds(2, [](int) {
    for (const int64_t rows : {1, 2, 15, 16, 17}) {
      for (const int64_t count : {1, 3, 40}) fusedstep::test(rows, count);
    }
  });
  return check::summary();
}
