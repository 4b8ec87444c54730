// Random tables of tensors for the kernels' tests: the same twice, one for the CPU and one for the
// harness.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "kernels/common/layout.h"

namespace fusedstep {

// One array in a heap block that ends where it ends, so that AddressSanitizer sees any access past
// it. `offset` elements come before the first, which is then not aligned for wide accesses.
class Array {
 public:
  Array(Dtype dtype, int64_t size, int offset)
      : dtype_(dtype),
        lead_(static_cast<size_t>(offset) * element_size(dtype)),
        bytes_(lead_ + static_cast<size_t>(size) * element_size(dtype)),
        memory_(static_cast<char*>(::operator new(bytes_, std::align_val_t{16}))) {
    std::memset(memory_.get(), 0x5a, bytes_);
  }

  static size_t element_size(Dtype dtype) {
    return with_storage(dtype, [](auto x) { return sizeof(x); });
  }

  void* data() const { return memory_.get() + lead_; }
  int64_t size() const { return static_cast<int64_t>((bytes_ - lead_) / element_size(dtype_)); }

  void set(int64_t i, double value) {
    with_storage(dtype_, [&](auto x) {
      using Storage = decltype(x);
      static_cast<Storage*>(data())[i] = store_as<Storage>(static_cast<Compute<Storage>>(value));
    });
  }

  double get(int64_t i) const {
    return with_storage(dtype_, [&](auto x) {
      return load_as<double>(static_cast<const decltype(x)*>(data())[i]);
    });
  }

  // The same bits, but that all NaNs are one: which operand's NaN an addition passes on is up to
  // the compiler.
  bool operator==(const Array& other) const {
    if (bytes_ != other.bytes_) return false;
    if (std::memcmp(memory_.get(), other.memory_.get(), bytes_) == 0) return true;
    if (std::memcmp(memory_.get(), other.memory_.get(), lead_) != 0) return false;
    const size_t width = element_size(dtype_);
    for (int64_t i = 0; i < size(); ++i) {
      const bool same = std::memcmp(memory_.get() + lead_ + i * width,
                                    other.memory_.get() + lead_ + i * width, width) == 0;
      if (!same && !(std::isnan(get(i)) && std::isnan(other.get(i)))) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{16}); }
  };
  Dtype dtype_;
  size_t lead_, bytes_;
  std::unique_ptr<char, Free> memory_;
};

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16};

inline Dtype compute_dtype(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

struct Spec {
  int64_t size = 0;
  Dtype param_dtype = Dtype::kFloat32;
  Dtype grad_dtype = Dtype::kFloat32;
  int param_offset = 0, grad_offset = 0, state_offset = 0;  // elements
  int32_t group = 0;
  int step = 0;
};

// Sizes on both sides of every boundary in the kernels: packs, lanes, strips, chunks.
inline int64_t random_size(std::mt19937_64& random) {
  static const int64_t edges[] = {0,
                                  1,
                                  2,
                                  3,
                                  7,
                                  8,
                                  31,
                                  32,
                                  33,
                                  255,
                                  256,
                                  257,
                                  2047,
                                  2048,
                                  2049,
                                  4095,
                                  4096,
                                  kChunkSize - 1,
                                  kChunkSize,
                                  kChunkSize + 1,
                                  2 * kChunkSize + 777};
  return random() % 4 == 0 ? static_cast<int64_t>(random() % 5000)
                           : edges[random() % std::size(edges)];
}

inline std::vector<Spec> random_specs(std::mt19937_64& random, int count, int groups) {
  std::vector<Spec> specs(static_cast<size_t>(count));
  for (Spec& spec : specs) {
    spec.size = random_size(random);
    spec.param_dtype = kDtypes[random() % 4];
    spec.grad_dtype = kDtypes[random() % 4];
    if (random() % 3 == 0) {
      // Alike in half the cases: then a head of single elements leads up to aligned packs.
      spec.param_offset = static_cast<int>(random() % 9);
      spec.grad_offset = random() % 2 ? spec.param_offset : static_cast<int>(random() % 9);
      spec.state_offset = random() % 2 ? spec.param_offset : static_cast<int>(random() % 9);
    }
    spec.group = static_cast<int32_t>(random() % static_cast<size_t>(groups));
    spec.step = random() % 3 ? static_cast<int>(random() % 2000) : 0;
  }
  return specs;
}

// What the tensors hold.
enum class Values { kNormal, kHuge, kTiny, kZero, kOneNaN, kOneInfinity };

inline double random_value(std::mt19937_64& random, Values values) {
  const double x = std::normal_distribution<>()(random);
  switch (values) {
    case Values::kHuge:
      return x * 1e25;  // its square is beyond float, it itself beyond half
    case Values::kTiny:
      return x * 1e-25;
    case Values::kZero:
      return 0;
    default:
      return x;
  }
}

class Problem {
 public:
  // `states`: arrays of optimizer state of each tensor, not negative from the second on.
  // `in_place`: the gradients are the parameters.
  Problem(const std::vector<Spec>& specs, uint64_t seed, Values values, int states,
          bool in_place = false)
      : steps_(specs.size()) {
    std::mt19937_64 random(seed);
    std::vector<Row> listed;
    std::vector<void*> grads;
    arrays_.reserve(specs.size() * (2 + kMaxStates));
    for (size_t i = 0; i < specs.size(); ++i) {
      const Spec& spec = specs[i];
      Row row = {};
      row.param = fill(spec.param_dtype, spec.size, spec.param_offset, [&](int64_t) {
        return random_value(random, in_place ? values : Values::kNormal);
      });
      grads.push_back(in_place ? row.param
                               : fill(spec.grad_dtype, spec.size, spec.grad_offset,
                                      [&](int64_t) { return random_value(random, values); }));
      for (int k = 0; k < states; ++k) {
        row.states[k] =
            fill(compute_dtype(spec.param_dtype), spec.size, spec.state_offset, [&](int64_t) {
              const double x = random_value(random, Values::kNormal);
              return spec.step == 0 ? 0 : k == 0 ? x : x * x;
            });
      }
      steps_[i] = static_cast<float>(spec.step);
      row.step = states > 0 ? &steps_[i] : nullptr;
      row.size = spec.size;
      row.group = spec.group;
      row.param_dtype = spec.param_dtype;
      row.grad_dtype = spec.grad_dtype;
      listed.push_back(row);
    }
    const size_t stride = static_cast<size_t>(states) + (in_place ? 1 : 2);
    plant(values, in_place ? 0 : 1, stride, random);
    layout_ = make_layout(listed);
    for (const int32_t i : layout_.order) grads_.push_back(grads[static_cast<size_t>(i)]);
    // The kernels must stay inside the table as well: its heap blocks end where it ends.
    layout_.rows.shrink_to_fit();
    layout_.row_of_chunk.shrink_to_fit();
    grads_.shrink_to_fit();
  }

  Table table(const void* groups) const {
    return {layout_.rows.data(), grads_.data(), layout_.row_of_chunk.data(), groups,
            layout_.num_chunks()};
  }
  const Layout& layout() const { return layout_; }
  const std::vector<Array>& arrays() const { return arrays_; }

  bool operator==(const Problem& other) const {
    return arrays_ == other.arrays_ && steps_ == other.steps_;
  }

 private:
  template <typename F>
  void* fill(Dtype dtype, int64_t size, int offset, F&& value) {
    Array& array = arrays_.emplace_back(dtype, size, offset);
    for (int64_t i = 0; i < size; ++i) array.set(i, value(i));
    return array.data();
  }

  // Puts one value that is not finite into one of the gradients: every `stride`th array from
  // `first` on.
  void plant(Values values, size_t first, size_t stride, std::mt19937_64& random) {
    if (values != Values::kOneNaN && values != Values::kOneInfinity) return;
    std::vector<Array*> candidates;
    for (size_t i = first; i < arrays_.size(); i += stride) {
      if (arrays_[i].size() > 0) candidates.push_back(&arrays_[i]);
    }
    if (candidates.empty()) return;
    Array& array = *candidates[random() % candidates.size()];
    array.set(static_cast<int64_t>(random() % static_cast<size_t>(array.size())),
              values == Values::kOneNaN ? NAN : -INFINITY);
  }

  std::vector<Array> arrays_;
  std::vector<float> steps_;
  std::vector<void*> grads_;
  Layout layout_;
};

}  // namespace fusedstep
