// Every check of an op's arguments, in one wording. Python refuses bad input first, with ValueError
// and TypeError (python/fusedstep/checks.py); these protect direct callers of the ops.
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "csrc/tensor.h"

namespace fusedstep {

// An argument of a function and what it must be:
//   Arg(function, "rows", rows).is({ScalarType::Float}).dims(2).must(width > 0, "have columns");
// raises "<function>: <argument>[index] must <property>, got <value>" where something does not
// hold; of a tensor the value is its dtype, shape, strides and device.
template <typename Value>
class Arg {
 public:
  Arg(const char* function, const char* argument, const Value& value, int64_t index = -1)
      : function_(function), argument_(argument), value_(value), index_(index) {}

  const Arg& must(bool holds, std::string_view property) const {
    if (!holds) {
      fail(property);
    }
    return *this;
  }

  [[noreturn]] void fail(std::string_view property) const {
    std::ostringstream message;
    message << function_ << ": " << argument_;
    if (index_ >= 0) {
      message << "[" << index_ << "]";
    }
    message << " must " << property << ", got ";
    if constexpr (std::is_same_v<Value, Tensor>) {
      message << description(value_);
    } else {
      message << value_;
    }
    throw std::runtime_error(message.str());  // torch's own macro would add the file's path
  }

  // The rest is for tensors.

  // Dense and of one of these dtypes.
  const Arg& is(std::initializer_list<ScalarType> dtypes) const {
    const auto dtype = scalar_type_of(value_);
    if (!is_strided(value_) || !dtype || std::ranges::find(dtypes, *dtype) == dtypes.end()) {
      std::string property = "be a dense ";
      size_t left = dtypes.size();
      for (const ScalarType wanted : dtypes) {
        property += name_of(wanted);
        property += --left > 1 ? ", " : left == 1 ? " or " : " tensor";
      }
      fail(property);
    }
    return *this;
  }

  // Dense and of a dtype that parameters and gradients may have.
  Dtype floating() const {
    is({ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
    return *dtype_of(value_);
  }

  const Arg& dims(int64_t count) const {
    if (value_.dim() != count) {
      fail("have " + std::to_string(count) + (count == 1 ? " dimension" : " dimensions"));
    }
    return *this;
  }

  const Arg& shape(std::initializer_list<int64_t> sizes) const {
    if (!std::ranges::equal(value_.sizes(), sizes)) {
      fail("have the shape " + text_of(sizes));
    }
    return *this;
  }

  const Arg& contiguous() const { return must(value_.is_contiguous(), "be contiguous"); }

  // The kernels take a tensor's elements in the order of memory, numel() of them from the first on.
  const Arg& gapless() const {
    return must(is_gapless(value_), "have its elements in memory without gaps");
  }

  const Arg& on_device_of(const Tensor& first) const {
    return must(same_device(value_, first), "be on the device of the first tensor");
  }

  const Arg& scalar(Dtype dtype, const Tensor& first) const {
    must(value_.numel() == 1 && dtype_of(value_) == dtype,
         dtype == Dtype::kFloat64 ? "be one float64 value" : "be one float32 value");
    return on_device_of(first);
  }

 private:
  const char* function_;
  const char* argument_;
  const Value& value_;
  int64_t index_;
};

// The checks of an argument that may be missing.
inline void check_scalar(const char* function, const char* argument,
                         const std::optional<Tensor>& tensor, Dtype dtype, const Tensor& first) {
  if (tensor.has_value()) {
    Arg(function, argument, *tensor).scalar(dtype, first);
  }
}

inline void check_length(const char* function, const char* argument, size_t length,
                         size_t expected) {
  if (length != expected) {
    Arg(function, argument, length).fail("have length " + std::to_string(expected));
  }
}

}  // namespace fusedstep
