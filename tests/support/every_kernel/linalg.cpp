// Gram matrices, certificates, truncations and the inverses of tiny matrices.
#include <algorithm>
#include <utility>

#include "kernels/linalg/gram.h"
#include "kernels/linalg/row_space.h"
#include "kernels/linalg/small_pinv.h"
#include "kernels/linalg/tiny_pinv.h"
#include "kernels/linalg/truncate.h"
#include "tests/support/every_kernel/results.h"

namespace fusedstep::every_kernel {
namespace {

void gram(Dtype dtype, bool by_column) {
  constexpr int64_t kCount = 600, kWidth = 37;
  Numbers numbers;
  Array rows = random(numbers, dtype, kCount * kWidth);
  std::vector<double> result(kWidth * kWidth);
  const GramRows all{rows.data(),  dtype,  by_column, 1,
                     kCount,       kWidth, 0,         by_column ? kCount : kWidth,
                     result.data()};
  std::vector<double> scratch(cpu::gram_scratch(all));
  cpu::add_pairs(all, 0, cpu::gram_pairs(kWidth), scratch.data());
  Hash hash;
  for (int64_t i = 0; i < kWidth; ++i) {
    hash.add_all(result.data() + i * kWidth, i + 1);  // above the diagonal only some is written
  }
  print(std::string("gram ") + name_of(dtype) + (by_column ? " by column" : ""), hash);
}

void certificate() {
  constexpr int64_t kBatch = 3, kWidth = 45;
  Numbers numbers;
  Array gram = random(numbers, Dtype::kFloat64, kBatch * kWidth * kWidth);
  Array inverse = random(numbers, Dtype::kFloat64, kBatch * kWidth * kWidth, 0x1p-9);
  const bool exists[kBatch] = {true, true, false};
  const double atol[kBatch] = {0, 0.5, 0}, rtol[kBatch] = {1e-6, 0, 0};
  const int64_t strips = strips_of(kWidth);
  std::vector<double> room(3 * kBatch * strips);
  int32_t verdicts[kBatch];
  int64_t rank[kBatch];
  double rcond[kBatch];
  const Certificates c{.gram = gram.as<double>(),
                       .inverse = inverse.as<double>(),
                       .exists = exists,
                       .atol = atol,
                       .rtol = rtol,
                       .batch = kBatch,
                       .count = 100,
                       .width = kWidth,
                       .gram_strips = room.data(),
                       .inverse_strips = room.data() + kBatch * strips,
                       .traces = room.data() + 2 * kBatch * strips,
                       .verdict = verdicts,
                       .rank = rank,
                       .rcond = rcond};
  cpu::sum_strips(c, 0, kBatch * strips);
  cpu::certify_matrices(c, 0, kBatch);
  Hash hash;
  hash.add_all(room.data(), static_cast<int64_t>(room.size()));
  hash.add_all(verdicts, kBatch);
  hash.add_all(rank, kBatch);
  hash.add_all(rcond, kBatch);
  print("certificate", hash);
}

void truncation() {
  constexpr int64_t kBatch = 2, kCount = 19, kWidth = 33;
  Numbers numbers;
  Array values = random(numbers, Dtype::kFloat64, kBatch * kWidth);
  Array vectors = random(numbers, Dtype::kFloat64, kBatch * kCount * kWidth);
  const double atol[kBatch] = {0, 0.25}, rtol[kBatch] = {0.125, 0};
  std::vector<double> inverses(kBatch * kWidth), scaled(kBatch * kCount * kWidth);
  int64_t rank[kBatch];
  double rcond[kBatch];
  for (const int64_t gram_count : {0, 100}) {
    const Truncation t{.values = values.as<double>(),
                       .vectors = vectors.as<double>(),
                       .atol = atol,
                       .rtol = rtol,
                       .batch = kBatch,
                       .count = kCount,
                       .width = kWidth,
                       .batch_stride = kCount * kWidth,
                       .row_stride = kWidth,
                       .column_stride = 1,
                       .gram_count = gram_count,
                       .inverses = inverses.data(),
                       .scaled = scaled.data(),
                       .rank = rank,
                       .rcond = rcond};
    cpu::truncate(t, 0, kBatch);
    cpu::scale_rows(t, 0, kBatch * kCount);
    Hash hash;
    hash.add_all(scaled.data(), static_cast<int64_t>(scaled.size()));
    hash.add_all(rank, kBatch);
    hash.add_all(rcond, kBatch);
    print("truncate " + std::to_string(gram_count), hash);
  }
}

// Matrices of full rank, of one less every third, and one that is not finite: their inverses, or
// solutions for some right sides.
void tiny_inverses(Dtype dtype, int rows, int columns, bool jacobi, int right_sides) {
  constexpr int64_t kCount = 13;
  Numbers numbers;
  Array A = random(numbers, dtype, kCount * rows * columns);
  with_storage(dtype, [&](auto storage) {
    using T = decltype(storage);
    T* const a = A.as<T>();
    for (int64_t m = 0; m < kCount; m += 3) {
      for (int i = 0; i < rows; ++i) {
        T* const row = a + (m * rows + i) * columns;
        row[columns - 1] = row[0];
      }
    }
    a[rows * columns] = store_as<T>(std::numeric_limits<double>::infinity());
  });
  Array B = random(numbers, dtype, kCount * rows * right_sides);
  int64_t rank[kCount];
  int32_t code[kCount];
  double rcond[kCount];
  TinyPinv p{.A = A.data(),
             .dtype = dtype,
             .rows = rows,
             .columns = columns,
             .count = kCount,
             .atol = {},
             .rtol = {.all = 1e-6},
             .jacobi = jacobi,
             .B = right_sides > 0 ? B.data() : nullptr,
             .right_sides = right_sides,
             .result = nullptr,
             .rank = rank,
             .code = code,
             .rcond = rcond};
  for (const bool alone : {false, true}) {
    Array result = zeros(dtype, kCount * columns * (right_sides > 0 ? right_sides : rows));
    p.result = result.data();
    if (alone) {
      for (int64_t m = 0; m < kCount; ++m) {
        cpu::tiny_pinv_alone(p, m);
      }
    } else {
      cpu::tiny_pinv(p, 0, kCount);
    }
    Hash hash;
    hash.add_all(result);
    hash.add_all(rank, kCount);
    hash.add_all(code, kCount);
    hash.add_all(rcond, kCount);
    print(std::string(alone ? "tiny_pinv_alone " : "tiny_pinv ") + name_of(dtype) + " " +
              std::to_string(rows) + "x" + std::to_string(columns) + (jacobi ? " jacobi " : " ") +
              std::to_string(right_sides),
          hash);
  }
}

// One matrix of full rank and one of half the rank, and solutions.
void small_inverses(Dtype dtype, int rows, int columns, int right_sides) {
  constexpr int64_t kCount = 2;
  Numbers numbers;
  Array A = random(numbers, dtype, kCount * rows * columns);
  with_storage(dtype, [&](auto storage) {
    using T = decltype(storage);
    T* const a = A.as<T>() + rows * columns;
    for (int i = 0; i < rows; ++i) {
      std::copy_n(a + i * columns, columns / 2, a + i * columns + (columns + 1) / 2);
    }
  });
  Array B = random(numbers, dtype, kCount * rows * right_sides);
  Array result = zeros(dtype, kCount * columns * (right_sides > 0 ? right_sides : rows));
  const TinyPinv p{.A = A.data(),
                   .dtype = dtype,
                   .rows = rows,
                   .columns = columns,
                   .count = kCount,
                   .atol = {},
                   .rtol = {.all = 1e-6},
                   .jacobi = false,
                   .B = right_sides > 0 ? B.data() : nullptr,
                   .right_sides = right_sides,
                   .result = result.data()};
  Hash hash;
  for (int64_t m = 0; m < kCount; ++m) {
    const int64_t proved = cpu::small_pinv(p, m);
    hash.add_all(&proved, 1);
  }
  hash.add_all(result);
  print(std::string("small_pinv ") + name_of(dtype) + " " + std::to_string(rows) + "x" +
            std::to_string(columns) + " " + std::to_string(right_sides),
        hash);
}

// Of Gram matrices of full rank, of rank 12 and of zeros, proved and guessed.
void row_spaces(bool guess) {
  constexpr int64_t kBatch = 3, kWidth = 37, kRanks[kBatch] = {60, 12, 0};
  Numbers numbers;
  std::vector<double> gram(kBatch * kWidth * kWidth), inverses(gram.size());
  for (int64_t matrix = 0; matrix < kBatch; ++matrix) {
    Array rows = random(numbers, Dtype::kFloat64, std::max<int64_t>(kRanks[matrix], 1) * kWidth);
    const auto* const x = rows.as<double>();
    for (int64_t i = 0; i < kRanks[matrix]; ++i) {
      for (int64_t j = 0; j < kWidth; ++j) {
        for (int64_t k = 0; k < kWidth; ++k) {
          gram[(matrix * kWidth + j) * kWidth + k] += x[i * kWidth + j] * x[i * kWidth + k];
        }
      }
    }
  }
  const double atol[kBatch] = {}, rtol[kBatch] = {1e-6, 1e-6, 1e-6};
  int32_t verdicts[kBatch];
  int64_t rank[kBatch];
  double rcond[kBatch];
  const RowSpaces spaces{.gram = gram.data(),
                         .atol = atol,
                         .rtol = rtol,
                         .batch = kBatch,
                         .count = 60,
                         .width = kWidth,
                         .guess = guess,
                         .inverses = inverses.data(),
                         .verdict = verdicts,
                         .rank = rank,
                         .rcond = rcond};
  const auto alone = [](int64_t count, const std::function<void(int64_t, int64_t)>& f) {
    f(0, count);
  };
  for (int64_t matrix = 0; matrix < kBatch; ++matrix) {
    cpu::find_row_space(spaces, matrix, alone);
  }
  Hash hash;
  hash.add_all(verdicts, kBatch);
  hash.add_all(rank, kBatch);
  hash.add_all(rcond, kBatch);
  hash.add_all(inverses.data(), static_cast<int64_t>(inverses.size()));
  print(std::string("row_space ") + (guess ? "guessed" : "proved"), hash);
}

}  // namespace

void run_linalg() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    gram(dtype, false);
    gram(dtype, true);
  }
  certificate();
  truncation();
  row_spaces(false);
  row_spaces(true);
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    for (const auto& [rows, columns] : {std::pair(3, 3), {13, 9}, {7, 31}}) {
      for (const int right_sides : {0, 3}) {
        tiny_inverses(dtype, rows, columns, false, right_sides);
        tiny_inverses(dtype, rows, columns, true, right_sides);
        small_inverses(dtype, 5 * rows, 5 * columns, right_sides);
      }
    }
  }
}

}  // namespace fusedstep::every_kernel
