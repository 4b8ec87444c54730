// Every check of an op's arguments, in one wording. Python refuses bad input first, with ValueError
// and TypeError (python/fusedstep/checks.py); these guard those who call the ops themselves.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "csrc/tensor.h"

namespace fusedstep {

// "<function>: <argument>[i] must <property>, got <value>"; i < 0: no index.
template <typename Value>
void require(bool holds, const char* function, const char* argument, int64_t i,
             const char* property, const Value& value) {
  if (!holds) {
    std::ostringstream message;
    message << function << ": " << argument;
    if (i >= 0) {
      message << "[" << i << "]";
    }
    message << " must " << property << ", got " << value;
    throw std::runtime_error(message.str());  // torch's own macro would add the file's path
  }
}

inline void require_length(const char* function, const char* argument, size_t length,
                           size_t expected) {
  require(length == expected, function, argument, -1,
          ("have length " + std::to_string(expected)).c_str(), length);
}

inline Dtype require_dtype(const char* function, const char* argument, int64_t i,
                           const Tensor& tensor) {
  const auto dtype = dtype_of(tensor);
  require(is_floating(dtype) && is_strided(tensor), function, argument, i,
          "be a dense float32, float64, bfloat16 or float16 tensor", "another dtype or layout");
  return *dtype;
}

// The kernels take a tensor's elements in the order of memory, numel() of them from the first on.
inline void require_gapless(const char* function, const char* argument, int64_t i,
                            const Tensor& tensor) {
  if (!is_gapless(tensor)) {
    std::ostringstream got;
    for (const Dimension& dim : dimensions(tensor)) {
      got << (got.tellp() > 0 ? ", " : "sizes and strides ") << dim.size << " by " << dim.stride;
    }
    require(false, function, argument, i, "have its elements in memory without gaps", got.str());
  }
}

// A matrix whose rows lie in memory without gaps, though perhaps apart from one another.
inline Dtype require_rows(const char* function, const Tensor& rows, int64_t width,
                          const char* as_wide) {
  const Dtype dtype = require_dtype(function, "rows", -1, rows);
  require(rows.dim() == 2, function, "rows", -1, "have two dimensions", rows.dim());
  require(rows.size(1) == width, function, "rows", -1, as_wide, rows.size(1));
  require(width < 2 || rows.stride(1) == 1, function, "rows", -1,
          "have neighbouring elements in memory along a row", rows.stride(1));
  return dtype;
}

inline void require_same_device(const char* function, const char* argument, int64_t i,
                                const Tensor& tensor, const Tensor& reference) {
  require(same_device(tensor, reference), function, argument, i,
          "be on the device of the first tensor", tensor.get_device());
}

inline void require_scalar(const char* function, const char* argument, int64_t i,
                           const Tensor& tensor, Dtype dtype, const Tensor& reference) {
  require(tensor.numel() == 1 && dtype_of(tensor) == dtype, function, argument, i,
          dtype == Dtype::kFloat64 ? "be one float64 value" : "be one float32 value",
          std::to_string(tensor.numel()) + " values or another dtype");
  require_same_device(function, argument, i, tensor, reference);
}

inline void require_scalar(const char* function, const char* argument,
                           const std::optional<Tensor>& tensor, Dtype dtype,
                           const Tensor& reference) {
  if (tensor.has_value()) {
    require_scalar(function, argument, -1, *tensor, dtype, reference);
  }
}

}  // namespace fusedstep
