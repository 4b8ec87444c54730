// Sums of rows by id: the CUDA kernels in the harness, the CPU kernel under any split of the work
// and the order of segment_sum.h written out agree bit for bit.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/lm_head/segment_sum.cuh"
#include "kernels/lm_head/segment_sum.h"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace fusedstep {
namespace {

struct Shape {
  int64_t count, width, num_ids;
  int64_t gap = 0;     // elements between the end of a row and the next
  int64_t offset = 0;  // elements before the first row
};

// Arrays of exact size, so that the sanitizer sees every access out of bounds.
template <typename Storage>
struct Example {
  std::unique_ptr<Storage[]> rows;
  std::vector<int64_t> order, ids;
  std::vector<double> sums;
  Shape shape;

  Example(const Shape& s, uint64_t seed) : order(s.count), ids(s.count), shape(s) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const int64_t size = s.offset + s.count * (s.width + s.gap) - s.gap;
    rows = std::make_unique<Storage[]>(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      rows[i] = store_as<Storage>(normal(random) * std::exp2(10 * normal(random)));
    }
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (int64_t& id : ids) {  // small ones are frequent, as words are
      id = static_cast<int64_t>(random() % static_cast<uint64_t>(s.num_ids));
      id = static_cast<int64_t>(random() % static_cast<uint64_t>(id + 1));
    }
    std::sort(ids.begin(), ids.end());
    for (int64_t i = 0; i < s.num_ids * s.width; ++i) sums.push_back(normal(random));
  }

  Segments segments(double* into, double* heads) const {
    constexpr Dtype kDtype = std::is_same_v<Storage, double>     ? Dtype::kFloat64
                             : std::is_same_v<Storage, BFloat16> ? Dtype::kBFloat16
                             : std::is_same_v<Storage, Half>     ? Dtype::kFloat16
                                                                 : Dtype::kFloat32;
    return {.rows = rows.get() + shape.offset,
            .dtype = kDtype,
            .stride = shape.width + shape.gap,
            .width = shape.width,
            .order = order.data(),
            .ids = ids.data(),
            .count = shape.count,
            .sums = into,
            .heads = heads};
  }

  // The definition in kernels/lm_head/segment_sum.h, element by element.
  std::vector<double> by_definition() const {
    std::vector<double> result = sums;
    for (int64_t k = 0; k < shape.width; ++k) {
      for (int64_t p = 0; p < shape.count;) {
        const int64_t id = ids[p], piece = p / 64;
        double sum = 0;
        for (; p < shape.count && ids[p] == id && p / 64 == piece; ++p) {
          sum += load_as<double>(rows[shape.offset + order[p] * (shape.width + shape.gap) + k]);
        }
        result[id * shape.width + k] += sum;
      }
    }
    return result;
  }

  // `run(segments, pieces)` on copies; what was not written is NaN.
  template <typename F>
  std::vector<double> by(F&& run) const {
    const int64_t pieces = pieces_of(shape.count);
    std::vector<double> result = sums;
    std::vector<double> heads(static_cast<size_t>(pieces * shape.width), NAN);
    run(segments(result.data(), heads.data()), pieces);
    return result;
  }
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

template <typename Storage>
void check_shape(const Shape& shape, uint64_t seed) {
  const Example<Storage> example(shape, seed);
  const auto expected = example.by_definition();
  for (const int64_t share : {int64_t{1}, int64_t{3}, pieces_of(shape.count)}) {
    CHECK(same_bits(expected, example.by([&](const Segments& s, int64_t pieces) {
      for (const auto pass : {cpu::sum_pieces, cpu::collect_heads}) {
        for (int64_t end = pieces; end > 0; end -= share) {  // the last share first
          pass(s, std::max<int64_t>(0, end - share), end);
        }
      }
    })));
  }
  simt::for_seeds(2, [&](int) {
    CHECK(same_bits(expected, example.by([&](const Segments& s, int64_t) {
      CHECK(cuda::segment_sum(s, nullptr) == cudaSuccess);
    })));
  });
}

template <typename Storage>
void check_storage() {
  uint64_t seed = sizeof(Storage);
  for (const int64_t count : {1, 63, 64, 65, 128, 200, 1000}) {
    check_shape<Storage>({.count = count, .width = 40, .num_ids = 7}, ++seed);
  }
  for (const int64_t width : {1, 2, 3, 8, 128, 129, 300}) {
    check_shape<Storage>({.count = 150, .width = width, .num_ids = 20}, ++seed);
  }
  check_shape<Storage>({.count = 500, .width = 8, .num_ids = 1}, ++seed);     // one for all
  check_shape<Storage>({.count = 500, .width = 8, .num_ids = 5000}, ++seed);  // hardly any twice
  check_shape<Storage>({.count = 150, .width = 40, .num_ids = 9, .gap = 3}, ++seed);
  check_shape<Storage>({.count = 150, .width = 40, .num_ids = 9, .gap = 8}, ++seed);
  check_shape<Storage>({.count = 150, .width = 40, .num_ids = 9, .offset = 1}, ++seed);
}

}  // namespace
}  // namespace fusedstep

int main() {
  fusedstep::check_storage<float>();
  fusedstep::check_storage<double>();
  fusedstep::check_storage<fusedstep::BFloat16>();
  fusedstep::check_storage<fusedstep::Half>();
  return check::summary();
}
