// Random tables of tensors for the kernels' tests: the same twice, one for the CPU and one for the
// harness.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "kernels/optim/quantize.h"
#include "kernels/optim/table.h"

namespace fusedstep {

// Calls f with a value of the type that `dtype` names, codes included.
template <typename F>
auto with_element(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kInt8:
      return f(int8_t{});
    case Dtype::kUInt8:
      return f(uint8_t{});
    case Dtype::kInt16:
      return f(int16_t{});
    default:
      return with_storage(dtype, f);
  }
}

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
    return with_element(dtype, [](auto x) { return sizeof(x); });
  }

  void* data() const { return memory_.get() + lead_; }
  int64_t size() const { return static_cast<int64_t>((bytes_ - lead_) / element_size(dtype_)); }

  void set(int64_t i, double value) {
    with_element(dtype_, [&](auto x) {
      using Element = decltype(x);
      Element& element = static_cast<Element*>(data())[i];
      if constexpr (std::is_integral_v<Element>) {
        element = static_cast<Element>(static_cast<int>(value));
      } else {
        element = store_as<Element>(static_cast<Compute<Element>>(value));
      }
    });
  }

  double get(int64_t i) const {
    return with_element(dtype_, [&](auto x) {
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

// How a tensor's states are stored.
enum class States { kComputed, kBFloat16, kCoded };

struct Spec {
  int64_t size = 0;
  Dtype param_dtype = Dtype::kFloat32;
  Dtype grad_dtype = Dtype::kFloat32;
  int param_offset = 0, grad_offset = 0, state_offset = 0;  // elements
  int32_t group = 0;
  int step = 0;
  States states = States::kComputed;
  Dtype master = Dtype::kNone;  // float32, int16 or uint8, of bfloat16 parameters
  bool average = false;

  Dtype state_dtype(int k) const {
    const Dtype computed = compute_dtype(param_dtype);
    if (computed == Dtype::kFloat64 || states == States::kComputed) return computed;
    if (states == States::kBFloat16) return Dtype::kBFloat16;
    return k == 0 ? Dtype::kInt8 : Dtype::kUInt8;
  }
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
    spec.states = static_cast<States>(random() % 3);
    spec.average = random() % 3 == 0;
    if (spec.param_dtype == Dtype::kBFloat16 && random() % 2) {
      static const Dtype masters[] = {Dtype::kFloat32, Dtype::kInt16, Dtype::kUInt8};
      spec.master = masters[random() % std::size(masters)];
    }
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
    arrays_.reserve(specs.size() * (2 + kNumRoles));
    std::vector<Array*> gradients;
    for (size_t i = 0; i < specs.size(); ++i) {
      const Spec& spec = specs[i];
      Row row = {};
      row.param = fill(spec.param_dtype, spec.size, spec.param_offset,
                       [&] { return random_value(random, in_place ? values : Values::kNormal); });
      grads.push_back(in_place ? row.param
                               : fill(spec.grad_dtype, spec.size, spec.grad_offset,
                                      [&] { return random_value(random, values); }));
      gradients.push_back(&arrays_.back());
      steps_[i] = static_cast<float>(spec.step);
      row.size = spec.size;
      row.group = spec.group;
      row.position = static_cast<int32_t>(i);
      row.first_element = static_cast<int64_t>(i) * 1001;
      row.param_dtype = spec.param_dtype;
      row.grad_dtype = spec.grad_dtype;
      for (int k = 0; k < states; ++k) add_state(row, spec, k, random);
      if (states > 0) add_others(row, spec, random);
      if (states > 0) set(row, kStep, Dtype::kFloat32, &steps_[i]);
      listed.push_back(row);
    }
    plant(values, gradients, random);
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
    for (int64_t i = 0; i < size; ++i) array.set(i, value());
    return array.data();
  }

  static void set(Row& row, int role, Dtype dtype, void* data) {
    row.arrays[role] = data;
    row.dtypes[role] = dtype;
  }

  // Not negative from the second on; all zero before the first step.
  void add_state(Row& row, const Spec& spec, int k, std::mt19937_64& random) {
    const Dtype dtype = spec.state_dtype(k);
    const bool coded = dtype == Dtype::kInt8 || dtype == Dtype::kUInt8;
    set(row, kState + k, dtype, fill(dtype, spec.size, coded ? 0 : spec.state_offset, [&] {
          const double x = random_value(random, Values::kNormal);
          if (spec.step == 0) return 0.0;
          if (coded) return k == 0 ? std::fmod(x * 50, 127) : std::fmod(x * x * 50, 255);
          return k == 0 ? x : x * x;
        }));
    if (coded) {
      const int64_t blocks = blocks_of(spec.size);
      set(row, kScale + k, Dtype::kFloat32, fill(Dtype::kFloat32, blocks, 0, [&] {
            return std::abs(random_value(random, Values::kNormal)) + 1e-3;
          }));
    }
  }

  void add_others(Row& row, const Spec& spec, std::mt19937_64& random) {
    if (spec.master != Dtype::kNone) {
      set(row, kMaster, spec.master, fill(spec.master, spec.size, spec.state_offset, [&] {
            const double x = random_value(random, Values::kNormal);
            return spec.master == Dtype::kInt16   ? std::fmod(x * 9000, 32767)
                   : spec.master == Dtype::kUInt8 ? std::abs(std::fmod(x * 90, 255))
                                                  : x;
          }));
    }
    if (spec.average) {
      const Dtype dtype = compute_dtype(spec.param_dtype);
      set(row, kAverage, dtype, fill(dtype, spec.size, spec.state_offset, [&] {
            return random_value(random, Values::kNormal);
          }));
    }
  }

  // Puts one value that is not finite into one of the gradients.
  static void plant(Values values, std::vector<Array*> gradients, std::mt19937_64& random) {
    if (values != Values::kOneNaN && values != Values::kOneInfinity) return;
    std::erase_if(gradients, [](const Array* array) { return array->size() == 0; });
    if (gradients.empty()) return;
    Array& array = *gradients[random() % gradients.size()];
    array.set(static_cast<int64_t>(random() % static_cast<size_t>(array.size())),
              values == Values::kOneNaN ? NAN : -INFINITY);
  }

  std::vector<Array> arrays_;
  std::vector<float> steps_;
  std::vector<void*> grads_;
  Layout layout_;
};

}  // namespace fusedstep
