// Gram matrices: the CUDA kernels in the harness, where the products of an mma are added one after
// the other, and the order of kernels/linalg/gram.cuh written out agree bit for bit; the CPU kernel
// under any split of the work and the order of kernels/linalg/gram.h do, too.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernels/linalg/gram.cuh"
#include "kernels/linalg/gram.h"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace fusedstep {
namespace {

struct Shape {
  int64_t batch, count, width;
  int64_t gap = 0;     // elements between the end of a row, or column, and the next
  int64_t offset = 0;  // elements before the first
};

template <typename Storage>
constexpr Dtype kDtype = std::is_same_v<Storage, BFloat16> ? Dtype::kBFloat16
                         : std::is_same_v<Storage, Half>   ? Dtype::kFloat16
                                                           : Dtype::kFloat32;

// Arrays of exact size, so that the sanitizer sees every access out of bounds.
template <typename Storage>
struct Example {
  Shape shape;
  bool by_column;
  std::unique_ptr<Storage[]> data;
  std::vector<double> before;

  Example(const Shape& s, bool columns, uint64_t seed) : shape(s), by_column(columns) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const int64_t size = s.offset + s.batch * matrix_size() - s.gap;
    data = std::make_unique<Storage[]>(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      data[i] = store_as<Storage>(normal(random) * std::exp2(4 * normal(random)));
    }
    for (int64_t i = 0; i < s.batch * s.width * s.width; ++i) before.push_back(normal(random));
  }

  int64_t stride() const { return (by_column ? shape.count : shape.width) + shape.gap; }
  int64_t matrix_size() const { return stride() * (by_column ? shape.width : shape.count); }

  GramRows rows(double* gram) const {
    return {.rows = data.get() + shape.offset,
            .dtype = kDtype<Storage>,
            .by_column = by_column,
            .batch = shape.batch,
            .count = shape.count,
            .width = shape.width,
            .batch_stride = matrix_size(),
            .stride = stride(),
            .gram = gram};
  }

  double at(int64_t matrix, int64_t n, int64_t k) const {
    const int64_t in_matrix = by_column ? k * stride() + n : n * stride() + k;
    return load_as<double>(data[shape.offset + matrix * matrix_size() + in_matrix]);
  }

  // What is on and below the diagonal, by `finish(before, piece sums)` of sums over so many rows.
  template <typename F>
  std::vector<double> by_definition(int64_t piece_rows, F&& finish) const {
    std::vector<double> result;
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t i = 0; i < shape.width; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          std::vector<double> sums;
          for (int64_t n = 0; n < shape.count; ++n) {
            if (n % piece_rows == 0) sums.push_back(0);
            sums.back() += at(b, n, i) * at(b, n, j);
          }
          result.push_back(finish(before[(b * shape.width + i) * shape.width + j], sums));
        }
      }
    }
    return result;
  }

  template <typename F>
  std::vector<double> by(F&& run) const {
    std::vector<double> gram = before, result;
    run(rows(gram.data()));
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t i = 0; i < shape.width; ++i) {
        const double* row = gram.data() + (b * shape.width + i) * shape.width;
        result.insert(result.end(), row, row + i + 1);
      }
    }
    return result;
  }
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

void on_cpu(const GramRows& rows, int64_t share) {
  std::vector<double> scratch(cpu::gram_scratch(rows) + 8, NAN);
  for (int64_t end = rows.batch * cpu::gram_pairs(rows.width); end > 0; end -= share) {
    cpu::add_pairs(rows, std::max<int64_t>(0, end - share), end, scratch.data());
  }
}

double in_turn(double before, const std::vector<double>& sums) {
  for (const double sum : sums) before += sum;
  return before;
}

// Piece p belongs to strip p % 8; a single piece needs no strip.
double by_strips(double before, const std::vector<double>& sums) {
  if (sums.size() == 1) return before + sums[0];
  double strips[8] = {};
  for (size_t p = 0; p < sums.size(); ++p) strips[p % 8] += sums[p];
  double sum = strips[0];
  for (int s = 1; s < 8; ++s) sum += strips[s];
  return before + sum;
}

template <typename Storage>
void check_shape(const Shape& shape, bool by_column, uint64_t seed, int seeds = 1) {
  const Example<Storage> example(shape, by_column, seed);
  const auto blocks = example.by_definition(kGramBlock, in_turn);
  for (const int64_t share : {1, 3, 1000}) {
    CHECK(same_bits(blocks, example.by([&](const GramRows& r) { on_cpu(r, share); })));
  }
  const GramRows plan = example.rows(nullptr);
  const auto pieces = example.by_definition(cuda::gram_piece_rows(plan), by_strips);
  simt::for_seeds(seeds, [&](int) {
    CHECK(same_bits(pieces, example.by([&](const GramRows& r) {
      const auto size = static_cast<size_t>(cuda::gram_partials(r));
      const auto partials = std::make_unique<double[]>(size);
      CHECK(cuda::gram(r, size > 0 ? partials.get() : nullptr, nullptr) == cudaSuccess);
    })));
  });
}

template <typename Storage>
void check_storage() {
  uint64_t seed = sizeof(Storage);
  for (const bool by_column : {false, true}) {
    check_shape<Storage>({1, 1, 1}, by_column, ++seed, 3);
    check_shape<Storage>({3, 17, 5}, by_column, ++seed);
    check_shape<Storage>({1, 40, 64}, by_column, ++seed, 2);
    check_shape<Storage>({2, 33, 65}, by_column, ++seed);
    check_shape<Storage>({1, 16, 130}, by_column, ++seed);
    check_shape<Storage>({1, 48, 72, 8}, by_column, ++seed);
    check_shape<Storage>({2, 20, 40, 0, 1}, by_column, ++seed);
    check_shape<Storage>({1, 260, 8}, by_column, ++seed);
  }
}

// Many pieces, and where a single one is too long.
void check_pieces() {
  GramRows rows = {};
  rows.batch = 1, rows.width = 768;
  for (const int64_t count : {1, 16, 255, 256, 257, 100000, 12345678}) {
    rows.count = count;
    const int64_t length = cuda::gram_piece_rows(rows), pieces = cuda::gram_pieces(rows);
    CHECK(length % kGramBlock == 0 || count > kGramBlock);
    CHECK(length % cuda::kGramStep == 0);
    CHECK((pieces - 1) * length < count && pieces * length >= count);
    CHECK(pieces * cuda::gram_tiles(768) <= 8 * 3 * 132);
  }
  rows.count = 8192;
  CHECK(cuda::gram_pieces(rows) == 5);  // 390 blocks of the 396 that run at once
  rows.batch = 1024, rows.width = 128;
  CHECK(cuda::gram_pieces(rows) == 1 && cuda::gram_partials(rows) == 0);
  CHECK(cuda::gram_tiles(768) == 78 && cuda::gram_tiles(1) == 1 && cuda::gram_tiles(65) == 3);
}

}  // namespace
}  // namespace fusedstep

int main() {
  fusedstep::check_storage<float>();
  fusedstep::check_storage<fusedstep::BFloat16>();
  fusedstep::check_storage<fusedstep::Half>();
  fusedstep::check_shape<float>({1, 2400, 4}, false, 99);  // ten pieces: two in some strips
  fusedstep::check_pieces();
  return check::summary();
}
