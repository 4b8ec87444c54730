// Losses, gradients and steps of rows of logits; sums of rows by id.
#include "kernels/lm_head/segment_sum.h"
#include "kernels/lm_head/softmax.h"
#include "tests/support/every_kernel/results.h"

namespace fusedstep::every_kernel {
namespace {

void softmax(Dtype dtype, bool with_root) {
  constexpr int64_t kRows = 5, kClasses = 5003;
  Numbers numbers;
  Array logits = random(numbers, dtype, kRows * kClasses, 20);
  Array gram = random(numbers, dtype, kRows * kRows, 0.5);
  const int64_t tokens[kRows] = {0, 5002, 2048, 7, 7};
  const double squares[kRows] = {1.5, 2, 3, 0.25, 1};
  Softmax s{.logits = logits.data(),
            .dtype = dtype,
            .stride = kClasses,
            .classes = kClasses,
            .count = kRows,
            .tokens = tokens,
            .chunks = nullptr,
            .rows = nullptr,
            .writes = true,
            .root = {}};
  if (with_root) {
    s.root = {squares, 2.0, true, gram.data(), kRows};
  }
  std::vector<SoftmaxChunk> chunks(kRows * chunks_of_row(s));
  std::vector<SoftmaxRow> rows(kRows);
  s.chunks = chunks.data();
  s.rows = rows.data();
  for (int64_t row = 0; row < kRows; ++row) {
    cpu::sum_chunks(s, row, 0, chunks_of_row(s));
    cpu::fold_row(s, row);
    cpu::scale_chunks(s, row, 0, chunks_of_row(s));
  }
  Hash hash;
  for (const SoftmaxRow& row : rows) {
    const double results[] = {row.loss, row.miss, row.square, row.scale};
    hash.add_all(results, 4);
  }
  hash.add_all(logits);
  print(std::string("softmax ") + name_of(dtype) + (with_root ? " root" : ""), hash);
}

void segment_sum(Dtype dtype) {
  constexpr int64_t kCount = 300, kWidth = 261, kIds = 9;
  Numbers numbers;
  Array rows = random(numbers, dtype, kCount * kWidth);
  std::vector<int64_t> order(kCount), ids(kCount);
  for (int64_t p = 0; p < kCount; ++p) {
    order[p] = p * 7 % kCount;
    ids[p] = p < 20 ? p / 4 : p < 290 ? 6 : 8;  // one of several pieces
  }
  std::vector<double> sums(kIds * kWidth), heads((kCount + kPiece - 1) / kPiece * kWidth);
  const Segments s{rows.data(), dtype,  kWidth,      kWidth,      order.data(),
                   ids.data(),  kCount, sums.data(), heads.data()};
  cpu::sum_pieces(s, 0, pieces_of(kCount));
  cpu::collect_heads(s, 0, pieces_of(kCount));
  Hash hash;
  hash.add_all(sums.data(), kIds * kWidth);
  print(std::string("segment_sum ") + name_of(dtype), hash);
}

}  // namespace

void run_lm_head() {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    softmax(dtype, false);
    softmax(dtype, true);
  }
  for (const Dtype dtype : kFloating) {
    segment_sum(dtype);
  }
}

}  // namespace fusedstep::every_kernel
