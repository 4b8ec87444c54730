// Pseudo-inverses of tiny matrices: the CUDA kernel in the harness and the CPU kernel agree bit for
// bit, whatever matrices share a warp or a vector.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernels/linalg/tiny_pinv.cuh"
#include "kernels/linalg/tiny_pinv.h"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace fusedstep {
namespace {

constexpr int kRightSides = 3;

// Arrays of exact size, so that the sanitizer sees every access out of bounds.
template <typename Storage>
struct Example {
  int rows, columns;
  int64_t count;
  std::unique_ptr<Storage[]> A, B;
  std::vector<double> atol, rtol;

  struct Results {
    std::vector<Storage> P;  // or A⁺ B
    std::vector<int64_t> rank;
    std::vector<int32_t> code;
    std::vector<double> rcond;
  };

  // Matrix i is of kind i % 8: random, of half the rank, zero, with a NaN, hardly regular, huge,
  // diagonal, with two columns nearly the same.
  Example(int rows_, int columns_, int64_t count_, uint64_t seed)
      : rows(rows_), columns(columns_), count(count_), atol(count_), rtol(count_) {
    const int size = rows * columns, rank = std::max(1, std::min(rows, columns) / 2);
    A = std::make_unique<Storage[]>(static_cast<size_t>(count * size));
    B = std::make_unique<Storage[]>(static_cast<size_t>(count * rows * kRightSides));
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    std::generate_n(B.get(), count * rows * kRightSides, [&] { return normal(random); });
    for (int64_t i = 0; i < count; ++i) {
      Storage* a = A.get() + i * size;
      const int64_t kind = i % 8;
      std::vector<double> left(rows * rank), right(rank * columns);
      for (auto* factor : {&left, &right}) {
        for (double& x : *factor) x = normal(random);
      }
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
          double x = normal(random);
          if (kind == 1 || kind == 4) {
            x *= kind == 1 ? 0 : 1e-7;
            for (int k = 0; k < rank; ++k) x += left[r * rank + k] * right[k * columns + c];
          } else if (kind == 2 || (kind == 6 && r != c)) {
            x = 0;
          } else if (kind == 5) {
            x *= std::is_same_v<Storage, float> ? 1e37 : 1e300;
          } else if (kind == 7 && c > 0) {
            x = a[r * columns] * (1 + 1e-6 * x);
          }
          a[r * columns + c] = static_cast<Storage>(x);
        }
      }
      if (kind == 3) a[size / 2] = static_cast<Storage>(i % 16 == 3 ? NAN : INFINITY);
      rtol[i] = i % 3 == 2 ? 0.3 : std::is_same_v<Storage, float> ? 1e-6 : 1e-14;
      atol[i] = i % 5 == 4 ? 0.1 : 0;
    }
  }

  template <typename F>
  Results by(bool jacobi, bool solve, F&& run) const {
    const auto size = static_cast<size_t>(count);
    Results r{.P = std::vector<Storage>(size * columns * (solve ? kRightSides : rows), 7),
              .rank = std::vector<int64_t>(size, -1),
              .code = std::vector<int32_t>(size, -1),
              .rcond = std::vector<double>(size, -1)};
    run(TinyPinv{.A = A.get(),
                 .dtype = std::is_same_v<Storage, float> ? Dtype::kFloat32 : Dtype::kFloat64,
                 .rows = rows,
                 .columns = columns,
                 .count = count,
                 .atol = {.each = atol.data()},
                 .rtol = {.each = rtol.data()},
                 .jacobi = jacobi,
                 .B = solve ? B.get() : nullptr,
                 .right_sides = solve ? kRightSides : 0,
                 .result = r.P.data(),
                 .rank = r.rank.data(),
                 .code = r.code.data(),
                 .rcond = r.rcond.data()});
    return r;
  }
};

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename Results>
bool same(const Results& a, const Results& b) {
  return same_bits(a.P, b.P) && same_bits(a.rank, b.rank) && same_bits(a.code, b.code) &&
         same_bits(a.rcond, b.rcond);
}

template <typename Storage>
void check_shape(int rows, int columns, int64_t count, int seeds) {
  const Example<Storage> example(rows, columns, count, rows * 100 + columns);
  for (const auto& [jacobi, solve] : {std::pair(false, false), {true, false}, {false, true}}) {
    const auto expected =
        example.by(jacobi, solve, [&](const TinyPinv& p) { cpu::tiny_pinv(p, 0, count); });
    for (int64_t i = 0; i < count; ++i) {  // what the kinds are for
      const int64_t kind = i % 8;
      CHECK(expected.code[i] == (kind == 3 ? 1 : 0));
      CHECK((expected.rank[i] == 0) == (kind == 2 || kind == 3));
      CHECK(std::isnan(expected.rcond[i]) == (kind == 3));
      const auto after = (i + 1) * static_cast<int64_t>(expected.P.size()) / count;
      CHECK(std::isnan(expected.P[after - 1]) == (kind == 3));
    }
    for (const int64_t some : {1, 5}) {  // alone, and with other neighbours
      CHECK(same(expected, example.by(jacobi, solve, [&](const TinyPinv& p) {
        for (int64_t end = count; end > 0; end -= some) {
          cpu::tiny_pinv(p, std::max<int64_t>(0, end - some), end);
        }
      })));
    }
    simt::for_seeds(seeds, [&](int) {
      CHECK(same(expected, example.by(jacobi, solve, [&](const TinyPinv& p) {
        CHECK(cuda::tiny_pinv(p, nullptr) == cudaSuccess);
      })));
    });
  }
}

}  // namespace
}  // namespace fusedstep

int main() {
  using fusedstep::check_shape;
  check_shape<float>(1, 1, 8, 2);
  check_shape<double>(8, 8, 21, 2);
  check_shape<float>(7, 3, 19, 2);
  check_shape<double>(2, 5, 8, 1);
  check_shape<float>(16, 16, 9, 1);
  check_shape<double>(5, 13, 8, 1);
  check_shape<float>(1, 32, 8, 1);
  check_shape<double>(32, 6, 8, 1);
  check_shape<float>(30, 32, 8, 1);
  return check::summary();
}
