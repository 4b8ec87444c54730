// QK-Clip: the CUDA kernel in the harness, the CPU kernel under any split of the work and the
// definition in qk_clip.h, element by element, agree bit for bit.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/optim/qk_clip.cuh"
#include "kernels/optim/qk_clip.h"
#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"
#include "tests/simt/problem.h"

namespace fusedstep {
namespace {

constexpr double kThreshold = 10;

// Some rows of a weight, each with `width` elements, row by row or column by column.
struct Shape {
  int64_t heads, head_dim, width;
  int64_t first_row = 0, rows = -1;  // -1: to the last
  bool by_column = false;
  Dtype dtype = Dtype::kFloat32;
  int offset = 0;  // elements before the first, which is then not aligned
};

class Weights {
 public:
  Weights(const std::vector<Shape>& shapes, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<Row> listed;
    arrays_.reserve(shapes.size());
    for (const Shape& shape : shapes) {
      const int64_t left = shape.heads * shape.head_dim - shape.first_row;
      const int64_t rows = shape.rows < 0 ? left : shape.rows;
      Array& array = arrays_.emplace_back(shape.dtype, rows * shape.width, shape.offset);
      for (int64_t i = 0; i < array.size(); ++i) {
        array.set(i, random_value(random, Values::kNormal));
      }
      auto& logits = logits_.emplace_back();
      for (int64_t h = 0; h < shape.heads; ++h) {
        logits.push_back(static_cast<float>(15 * random_value(random, Values::kNormal)));
      }
      logits[random() % logits.size()] = random() % 2 ? NAN : INFINITY;
      logits.shrink_to_fit();
      Row row = {};
      row.param = array.data();
      row.size = array.size();
      row.param_dtype = row.grad_dtype = shape.dtype;
      listed.push_back(row);
      heads_.push_back(
          {nullptr, shape.head_dim, shape.first_row, rows, shape.by_column ? 1 : shape.width});
    }
    layout_ = make_layout(listed);
    layout_.rows.shrink_to_fit();
    layout_.row_of_chunk.shrink_to_fit();
    for (size_t i = 0; i < shapes.size(); ++i) heads_[i].max_logits = logits_[i].data();
    for (const int32_t i : layout_.order) sorted_.push_back(heads_[static_cast<size_t>(i)]);
    sorted_.shrink_to_fit();
  }

  const Layout& layout() const { return layout_; }
  Table table() const {
    return {layout_.rows.data(), nullptr, layout_.row_of_chunk.data(), sorted_.data(),
            layout_.num_chunks()};
  }
  bool operator==(const Weights& other) const { return arrays_ == other.arrays_; }

  void clip_by_definition() {
    for (size_t w = 0; w < arrays_.size(); ++w) {
      const QkHeads& heads = heads_[w];
      const Row row = row_of(w);
      with_storage(row.param_dtype, [&](auto storage) {
        using Storage = decltype(storage);
        auto* const x = static_cast<Storage*>(row.param);
        for (int64_t i = 0; i < row.size; ++i) {
          const int64_t in_whole = heads.first_row + i / heads.stride % heads.rows;
          const double logit = logits_[w][static_cast<size_t>(in_whole / heads.head_dim)];
          if (std::isfinite(logit) && logit > kThreshold) {
            using T = Compute<Storage>;
            x[i] =
                store_as<Storage>(load_as<T>(x[i]) * static_cast<T>(std::sqrt(kThreshold / logit)));
          }
        }
      });
    }
  }

 private:
  Row row_of(size_t listed) const {
    for (size_t r = 0; r < layout_.rows.size(); ++r) {
      if (layout_.order[r] == static_cast<int32_t>(listed)) return layout_.rows[r];
    }
    return {};
  }

  std::vector<Array> arrays_;
  std::vector<std::vector<float>> logits_;
  std::vector<QkHeads> heads_, sorted_;
  Layout layout_;
};

void check_weights(const std::vector<Shape>& shapes, uint64_t seed) {
  Weights expected(shapes, seed);
  expected.clip_by_definition();
  for (const int workers : {1, 2, 7}) {
    const Weights on_cpu(shapes, seed);
    for (int w = workers - 1; w >= 0; --w) {
      cpu::qk_clip(on_cpu.table(), kThreshold, share_begin(on_cpu.layout(), w, workers),
                   share_begin(on_cpu.layout(), w + 1, workers));
    }
    CHECK(on_cpu == expected);
  }
  simt::for_seeds(2, [&](int) {
    const Weights in_harness(shapes, seed);
    CHECK(cuda::qk_clip(in_harness.table(), kThreshold, nullptr) == cudaSuccess);
    CHECK(in_harness == expected);
  });
}

// Heads of many chunks, several in a chunk, in a warp's share, in a pack; alone and transposed.
std::vector<Shape> shapes_of(Dtype dtype) {
  std::vector<Shape> shapes;
  for (const bool by_column : {false, true}) {
    for (const int offset : {0, 1}) {
      shapes.push_back({2, 40, 1000, 0, -1, by_column, dtype, offset});
      shapes.push_back({5, 16, 130, 0, -1, by_column, dtype, offset});
      shapes.push_back({9, 3, 1, 0, -1, by_column, dtype, offset});
      shapes.push_back({33, 1, 67, 0, -1, by_column, dtype, offset});
      shapes.push_back({4, 8, 300, 5, 20, by_column, dtype, offset});  // parts of heads
      shapes.push_back({4, 8, 300, 31, 1, by_column, dtype, offset});
      shapes.push_back({4, 8, 300, 32, 0, by_column, dtype, offset});  // an empty shard
    }
  }
  return shapes;
}

}  // namespace
}  // namespace fusedstep

int main() {
  std::mt19937_64 random(1);
  std::vector<fusedstep::Shape> all;
  for (const fusedstep::Dtype dtype : fusedstep::kDtypes) {
    const auto shapes = fusedstep::shapes_of(dtype);
    for (const auto& shape : shapes) fusedstep::check_weights({shape}, random());
    all.insert(all.end(), shapes.begin(), shapes.end());
  }
  std::shuffle(all.begin(), all.end(), random);
  fusedstep::check_weights(all, random());
  return check::summary();
}
