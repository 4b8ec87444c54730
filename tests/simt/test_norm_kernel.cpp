// The norm pass: the CUDA kernel in the harness, the CPU kernel and the order of norm.h written out
// agree bit for bit.
#include "tests/simt/launch_in_test.h"
#include "tests/simt/passes.h"

namespace fusedstep {
namespace {

constexpr Norm kNorms[] = {Norm::kTwo, Norm::kOne, Norm::kInf};

// The definition in kernels/optim/norm.h, element by element.
template <Norm norm, typename T>
T fold(std::vector<T> lanes) {
  for (size_t half = lanes.size() / 2; half > 0; half /= 2) {
    for (size_t l = 0; l < half; ++l) lanes[l] = combine<norm>(lanes[l], lanes[l + half]);
  }
  return lanes[0];
}

template <Norm norm, typename T>
double partial_by_definition(const Array& array, int64_t begin, int64_t size, T scale) {
  const int64_t rows = (size + 255) / 256, rows_of_strip = (rows + 7) / 8;
  std::vector<std::vector<T>> strips(8, std::vector<T>(256));
  for (int64_t i = 0; i < size; ++i) {
    T& lane = strips[static_cast<size_t>(i / 256 / rows_of_strip)][static_cast<size_t>(i % 256)];
    lane = accumulate<norm>(lane, static_cast<T>(array.get(begin + i)) * scale);
  }
  T total = 0;
  for (const auto& strip : strips) total = combine<norm>(total, fold<norm>(strip));
  return total;
}

template <Norm norm>
double norm_by_definition(const std::vector<Spec>& specs, const Problem& problem,
                          double grad_scale) {
  std::vector<double> lanes(256);
  size_t chunk = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    const Array& grad = problem.arrays()[2 * i + 1];
    for (int64_t begin = 0; begin == 0 || begin < specs[i].size; begin += kChunkSize) {
      const int64_t size = std::min(kChunkSize, specs[i].size - begin);
      double partial = 0;
      if (specs[i].grad_dtype == Dtype::kFloat64) {
        partial = partial_by_definition<norm, double>(grad, begin, size, 1);
      } else {
        partial = partial_by_definition<norm, float>(grad, begin, size, 1);
        if (norm != Norm::kInf && !std::isfinite(partial)) {
          partial = partial_by_definition<norm, float>(grad, begin, size, 0x1p-96f) *
                    (norm == Norm::kTwo ? 0x1p192 : 0x1p96);
        }
      }
      double& lane = lanes[chunk++ % 256];
      lane = combine<norm>(lane, partial);
    }
  }
  const double folded = fold<norm>(lanes);
  return (norm == Norm::kTwo ? std::sqrt(folded) : folded) / grad_scale;
}

void check_norms(const std::vector<Spec>& specs, uint64_t seed, Values values, int schedules) {
  const Problem problem(specs, seed, values, 0);
  const Table table = problem.table(nullptr);
  const auto grad_scale = std::make_unique<float>(3.0f);
  for (const Norm norm : kNorms) {
    const float* scale = (seed + static_cast<uint64_t>(norm)) % 2 ? grad_scale.get() : nullptr;
    const double expected = with_norm(norm, [&](auto n) {
      return norm_by_definition<n.value>(specs, problem, scale == nullptr ? 1 : *scale);
    });
    CHECK(same_bits(norm_on_cpu(table, norm, scale), expected));
    for (int s = 0; s < schedules; ++s) {
      simt::configure({.seed = seed + static_cast<uint64_t>(s)});
      CHECK(same_bits(norm_in_harness(table, norm, scale), expected));
    }
    CHECK(values != Values::kOneNaN || std::isnan(expected));
    CHECK(values != Values::kZero || expected == 0);
  }
}

// Every dtype at every alignment, at sizes around the boundaries.
void test_sizes() {
  std::mt19937_64 random(1);
  for (const Dtype dtype : kDtypes) {
    for (const int offset : {0, 1, 4}) {
      for (const int64_t size : {0, 1, 255, 256, 257, 2048, 2049, 32767, 32768, 32769}) {
        Spec spec{.size = size, .grad_dtype = dtype, .grad_offset = offset};
        check_norms({spec}, random(), Values::kNormal, 1);
      }
    }
  }
}

void test_random_tables() {
  std::mt19937_64 random(2);
  for (int i = 0; i < 5; ++i) {
    for (const Values values : {Values::kNormal, Values::kHuge, Values::kTiny, Values::kZero,
                                Values::kOneNaN, Values::kOneInfinity}) {
      check_norms(random_specs(random, 1 + static_cast<int>(random() % 8), 1), random(), values, 2);
    }
  }
}

// More chunks than the last fold has lanes.
void test_many_tensors() {
  std::vector<Spec> specs(270);
  for (size_t i = 0; i < specs.size(); ++i) specs[i].size = static_cast<int64_t>(i % 5);
  check_norms(specs, 3, Values::kNormal, 2);
}

void test_huge_but_finite() {
  std::vector<Spec> specs(3, {.size = 5000});
  const Problem problem(specs, 4, Values::kHuge, 0);
  const double norm = norm_in_harness(problem.table(nullptr), Norm::kTwo, nullptr);
  double squares = 0;
  for (const size_t i : {1u, 3u, 5u}) {
    for (int64_t j = 0; j < 5000; ++j) squares += std::pow(problem.arrays()[i].get(j), 2);
  }
  CHECK(std::abs(norm / std::sqrt(squares) - 1) < 1e-6);
}

}  // namespace
}  // namespace fusedstep

int main() {
  fusedstep::test_sizes();
  fusedstep::test_random_tables();
  fusedstep::test_many_tensors();
  fusedstep::test_huge_but_finite();
  return check::summary();
}
