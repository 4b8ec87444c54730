// Certificates and truncation: the CUDA kernels in the harness and the CPU kernels under any split
// of the work agree bit for bit.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "kernels/linalg/certificate.cuh"
#include "kernels/linalg/certificate.h"
#include "kernels/linalg/truncate.cuh"
#include "kernels/linalg/truncate.h"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace fusedstep {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<double> normals(int64_t count, double scale, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<double> numbers(static_cast<size_t>(count));
  for (double& x : numbers) x = normal(random);
  return numbers;
}

// Bit for bit, but any NaN is as good as another.
bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return std::ranges::equal(a, b, [](double x, double y) {
    return (x != x && y != y) || memcmp(&x, &y, sizeof(x)) == 0;
  });
}

template <typename F>
void in_shares(int64_t count, int64_t share, F&& pass) {
  for (int64_t end = count; end > 0; end -= share) {  // the last share first
    pass(std::max<int64_t>(0, end - share), end);
  }
}

// All outputs one after the other; what was not written is NaN.
template <typename F>
std::vector<double> certified(int64_t batch, int64_t width, double inverse_scale, F&& run) {
  const int64_t size = batch * width * width;
  auto gram = normals(size, 1, static_cast<uint64_t>(size));
  const auto inverse = normals(size, inverse_scale, static_cast<uint64_t>(size + 1));
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < width; ++i) {
      double* row = gram.data() + (b * width + i) * width;
      row[i] = std::abs(row[i]) + 1;
      for (int64_t j = i + 1; j < width; ++j) row[j] = kNan;  // is not read
    }
  }
  if (batch > 2) gram[size - 1] = kNan;
  if (batch > 3) gram[width * width * 3 - 1] = INFINITY;
  std::vector<double> atol(batch), rtol(batch, 1e-6);
  const int64_t strips = batch * strips_of(width);
  std::vector<double> room(3 * strips, kNan);
  const auto exists = std::make_unique<bool[]>(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    exists[b] = b != 1;
    if (b % 5 == 4) rtol[b] = 1e-12, atol[b] = 1e-9;
  }
  std::vector<int32_t> verdict(batch, -1);
  std::vector<int64_t> rank(batch, -1);
  std::vector<double> rcond(batch, kNan);
  run(Certificates{.gram = gram.data(),
                   .inverse = inverse.data(),
                   .exists = exists.get(),
                   .atol = atol.data(),
                   .rtol = rtol.data(),
                   .batch = batch,
                   .count = 2 * width,
                   .width = width,
                   .gram_strips = room.data(),
                   .inverse_strips = room.data() + strips,
                   .traces = room.data() + 2 * strips,
                   .verdict = verdict.data(),
                   .rank = rank.data(),
                   .rcond = rcond.data()});
  rcond.insert(rcond.end(), verdict.begin(), verdict.end());
  rcond.insert(rcond.end(), rank.begin(), rank.end());
  return rcond;
}

void check_certificates(int64_t batch, int64_t width, double inverse_scale) {
  const auto on_cpu = [&](int64_t share) {
    return certified(batch, width, inverse_scale, [&](const Certificates& c) {
      in_shares(batch * strips_of(width), share,
                [&](int64_t begin, int64_t end) { cpu::sum_strips(c, begin, end); });
      in_shares(batch, share,
                [&](int64_t begin, int64_t end) { cpu::certify_matrices(c, begin, end); });
    });
  };
  const auto expected = on_cpu(1);
  for (const int64_t share : {3, 1000}) CHECK(same(expected, on_cpu(share)));
  simt::for_seeds(2, [&](int) {
    CHECK(same(expected, certified(batch, width, inverse_scale, [](const Certificates& c) {
                 CHECK(cuda::certify(c, nullptr) == cudaSuccess);
               })));
  });
  for (int64_t b = 0; b < batch; ++b) {
    CHECK(expected[batch + b] >= 0 && expected[2 * batch + b] >= 0);
  }
}

template <typename F>
std::vector<double> truncated(int64_t batch, int64_t count, int64_t width, bool turned,
                              int64_t gram_count, F&& run) {
  auto values = normals(batch * width, 1, static_cast<uint64_t>(batch + width));
  for (size_t i = 0; i < values.size(); i += 3) values[i] *= 1e-9;
  values[0] = 0;
  if (batch > 1) values[static_cast<size_t>(2 * width - 1)] = kNan;
  const auto vectors = normals(batch * count * width, 1, 7);
  std::vector<double> atol(batch), rtol(batch, 1e-6), inverses(batch * width, kNan);
  std::vector<double> scaled(batch * count * width, kNan), rcond(batch, kNan);
  std::vector<int64_t> rank(batch, -1);
  run(Truncation{.values = values.data(),
                 .vectors = vectors.data(),
                 .atol = atol.data(),
                 .rtol = rtol.data(),
                 .batch = batch,
                 .count = count,
                 .width = width,
                 .batch_stride = count * width,
                 .row_stride = turned ? 1 : width,
                 .column_stride = turned ? count : 1,
                 .gram_count = gram_count,
                 .inverses = inverses.data(),
                 .scaled = scaled.data(),
                 .rank = rank.data(),
                 .rcond = rcond.data()});
  scaled.insert(scaled.end(), rcond.begin(), rcond.end());
  scaled.insert(scaled.end(), rank.begin(), rank.end());
  return scaled;
}

void check_truncation(int64_t batch, int64_t count, int64_t width, bool turned, int64_t gram) {
  const auto on_cpu = [&](int64_t share) {
    return truncated(batch, count, width, turned, gram, [&](const Truncation& t) {
      in_shares(batch, share, [&](int64_t begin, int64_t end) { cpu::truncate(t, begin, end); });
      in_shares(batch * count, share,
                [&](int64_t begin, int64_t end) { cpu::scale_rows(t, begin, end); });
    });
  };
  const auto expected = on_cpu(1);
  for (const int64_t share : {3, 1000}) CHECK(same(expected, on_cpu(share)));
  simt::for_seeds(2, [&](int) {
    CHECK(same(expected, truncated(batch, count, width, turned, gram, [](const Truncation& t) {
                 CHECK(cuda::truncate(t, nullptr) == cudaSuccess);
               })));
  });
  CHECK(std::ranges::none_of(expected, [](double x) { return x == -1; }));
}

}  // namespace
}  // namespace fusedstep

int main() {
  using namespace fusedstep;
  for (const int64_t width : {1, 5, 31, 32, 33, 100}) {
    check_certificates(1, width, 1);
    check_certificates(6, width, 1);
    check_certificates(6, width, 1e9);
    for (const bool turned : {false, true}) {
      check_truncation(1, width, width, turned, 0);
      check_truncation(4, width + 3, width, turned, 0);
      check_truncation(4, 2, width, turned, 1000);
    }
  }
  check_certificates(70, 3, 1);
  check_truncation(70, 2, 3, false, 0);
  return check::summary();
}
