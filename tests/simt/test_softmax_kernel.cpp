// Loss and gradient of rows of logits: the CUDA kernels in the harness and the CPU kernel, under
// any split of a row's chunks, agree bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/lm_head/softmax.cuh"
#include "kernels/lm_head/softmax.h"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace fusedstep {
namespace {

enum class Mode { kLosses, kDirections, kRoots, kInTurn };

struct Shape {
  int64_t count, classes;
  int64_t gap = 0;     // elements between the end of a row and the next
  int64_t offset = 0;  // elements before the first row
  double spread = 3;
};

// Arrays of exact size, so that the sanitizer sees every access out of bounds.
template <typename T>
struct Example {
  std::vector<T> logits, gram;
  std::vector<int64_t> tokens;
  std::vector<double> squares;
  Shape shape;
  Mode mode;

  Example(const Shape& s, Mode m, uint64_t seed) : shape(s), mode(m) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    logits.resize(static_cast<size_t>(s.offset + s.count * (s.classes + s.gap) - s.gap));
    for (T& z : logits) z = static_cast<T>(s.spread * normal(random));
    for (int64_t n = 0; n < s.count; ++n) {
      tokens.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(s.classes)));
      squares.push_back(1 + std::abs(normal(random)));
    }
    for (int64_t i = 0; i < s.count * s.count; ++i) gram.push_back(static_cast<T>(normal(random)));
  }

  T& logit(int64_t row, int64_t at) {
    return logits[shape.offset + row * (shape.classes + shape.gap) + at];
  }

  // What `run(softmax, chunks of a row)` leaves: logits, then results. What was not written is NaN.
  template <typename F>
  std::vector<double> by(F&& run) const {
    const auto into = std::make_unique<T[]>(logits.size());
    std::copy(logits.begin(), logits.end(), into.get());
    const int64_t chunks = (shape.classes + kSoftmaxChunk - 1) / kSoftmaxChunk;
    std::vector<SoftmaxChunk> sums(shape.count * chunks, {NAN, NAN, NAN, NAN});
    std::vector<SoftmaxRow> rows(shape.count, {NAN, NAN, NAN, NAN});
    const bool roots = mode == Mode::kRoots || mode == Mode::kInTurn;
    run(Softmax{.logits = into.get() + shape.offset,
                .dtype = std::is_same_v<T, double> ? Dtype::kFloat64 : Dtype::kFloat32,
                .stride = shape.classes + shape.gap,
                .classes = shape.classes,
                .count = shape.count,
                .tokens = tokens.data(),
                .chunks = sums.data(),
                .rows = rows.data(),
                .writes = mode != Mode::kLosses,
                .root = {.squares = roots ? squares.data() : nullptr,
                         .loss_constant = 0.5,
                         .uphill = true,
                         .gram = mode == Mode::kInTurn ? gram.data() : nullptr,
                         .gram_stride = shape.count}},
        chunks);
    std::vector<double> result(into.get(), into.get() + logits.size());
    for (const auto& row : rows) {
      for (double x : {row.loss, row.miss, row.square, row.scale}) result.push_back(x);
    }
    return result;
  }

  // `share` chunks at a time, the last share first.
  std::vector<double> on_cpu(int64_t share) const {
    return by([&](const Softmax& s, int64_t chunks) {
      for (int64_t row = 0; row < s.count; ++row) {
        const auto in_shares = [&](auto pass) {
          for (int64_t end = chunks; end > 0; end -= share) {
            pass(s, row, std::max<int64_t>(0, end - share), end);
          }
        };
        in_shares(cpu::sum_chunks);
        cpu::fold_row(s, row);
        if (s.writes) in_shares(cpu::scale_chunks);
      }
    });
  }

  std::vector<double> on_gpu() const {
    return by([&](const Softmax& s, int64_t) {
      std::vector<unsigned> tickets(s.count, 0);
      CHECK(cuda::softmax_rows(s, tickets.data(), nullptr) == cudaSuccess);
      CHECK(std::all_of(tickets.begin(), tickets.end(), [](unsigned t) { return t == 0; }));
    });
  }

  void check() const {
    const auto expected = on_cpu(1);
    CHECK(same_bits(expected, on_cpu(3)));
    CHECK(std::memcmp(expected.data(), std::vector<double>(logits.begin(), logits.end()).data(),
                      logits.size() * sizeof(double)) == 0 ||
          mode != Mode::kLosses);
    simt::for_seeds(2, [&](int) { CHECK(same_bits(expected, on_gpu())); });
  }

  static bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double x, double y) {
      return std::memcmp(&x, &y, sizeof(x)) == 0 || (std::isnan(x) && std::isnan(y));
    });
  }
};

template <typename T>
void check_modes(const Shape& shape, uint64_t seed) {
  for (const Mode mode : {Mode::kLosses, Mode::kDirections, Mode::kRoots, Mode::kInTurn}) {
    Example<T>(shape, mode, seed).check();
  }
}

template <typename T>
void check_type() {
  uint64_t seed = sizeof(T);
  for (const int64_t classes : {1, 2, 127, 130, 2048, 2049, 6000}) {
    check_modes<T>({.count = 3, .classes = classes}, ++seed);
  }
  check_modes<T>({.count = 6, .classes = 300, .gap = 3}, ++seed);
  check_modes<T>({.count = 3, .classes = 2200, .gap = 8}, ++seed);
  check_modes<T>({.count = 3, .classes = 2200, .offset = 1}, ++seed);
  check_modes<T>({.count = 2, .classes = 4100, .spread = 1000}, ++seed);
  Example<T>({.count = 1, .classes = 70'000}, Mode::kDirections, ++seed).check();  // 35 chunks
  for (const double extreme : {-HUGE_VAL, HUGE_VAL, static_cast<double>(NAN), 1e30, -1e30}) {
    Example<T> example({.count = 4, .classes = 2300}, Mode::kDirections, ++seed);
    example.logit(0, 7) = example.logit(1, 2200) = static_cast<T>(extreme);
    example.logit(2, example.tokens[2]) = static_cast<T>(extreme);
    for (int64_t at = 0; at < 2048; ++at) example.logit(3, at) = static_cast<T>(extreme);
    example.check();
  }
}

}  // namespace
}  // namespace fusedstep

int main() {
  fusedstep::check_type<float>();
  fusedstep::check_type<double>();
  return check::summary();
}
