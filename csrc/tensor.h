// What the ops read from a torch tensor, through the stable C interface, and new tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/dtypes.h"

namespace fusedstep {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The kernels' name for a tensor's dtype; nothing where they do not know it.
inline std::optional<Dtype> dtype_of(const Tensor& tensor) {
  // Asked for every tensor at every step, so torch's codes are looked up once.
  static const int32_t kCodes[] = {aoti_torch_dtype_float32(),  aoti_torch_dtype_float64(),
                                   aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16(),
                                   aoti_torch_dtype_int8(),     aoti_torch_dtype_uint8(),
                                   aoti_torch_dtype_int16()};
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  for (size_t i = 0; i < std::size(kCodes); ++i) {
    if (code == kCodes[i]) {
      return static_cast<Dtype>(i + 1);  // 0 is kNone
    }
  }
  return std::nullopt;
}

// Whether parameters and gradients may have it.
inline bool is_floating(std::optional<Dtype> dtype) {
  return dtype.has_value() && *dtype <= Dtype::kFloat16;  // the first ones
}

inline bool is_strided(const Tensor& tensor) {
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  return layout == aoti_torch_layout_strided();
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.get_device() == b.get_device() && a.is_cuda() == b.is_cuda();
}

// Sizes and strides, which the tensor owns.
struct Geometry {
  std::span<const int64_t> sizes, strides;
};

inline Geometry geometry_of(const Tensor& tensor) {
  const auto dim = static_cast<size_t>(tensor.dim());
  int64_t *sizes, *strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  return {{sizes, dim}, {strides, dim}};
}

// Whether element i lies at the same place in both. Strides of dimensions of one element do not
// count, and none do where there is no element.
inline bool same_layout(const Geometry& a, const Geometry& b) {
  const size_t dim = a.sizes.size();
  if (dim != b.sizes.size()) {
    return false;
  }
  bool empty = false, same = true;
  for (size_t d = 0; d < dim; ++d) {
    if (a.sizes[d] != b.sizes[d]) {
      return false;
    }
    empty = empty || a.sizes[d] == 0;
    same = same && (a.sizes[d] == 1 || a.strides[d] == b.strides[d]);
  }
  return same || empty;
}

inline bool same_layout(const Tensor& a, const Tensor& b) {
  return same_layout(geometry_of(a), geometry_of(b));
}

inline int64_t numel_of(const Geometry& a) {
  int64_t numel = 1;
  for (const int64_t size : a.sizes) {
    numel *= size;
  }
  return numel;
}

// Whether numel() elements from the first on are the tensor's, each once, in any order of
// dimensions: no gap, and none shared, as in an expanded tensor.
inline bool is_gapless(const Geometry& a) {
  int64_t numel = 1;
  bool row_major = true;  // the usual order, told without a list of dimensions
  for (size_t d = a.sizes.size(); d-- > 0;) {
    row_major = row_major && (a.sizes[d] == 1 || a.strides[d] == numel);
    numel *= a.sizes[d];
  }
  if (row_major || numel < 2) {
    return true;
  }
  struct Dimension {
    int64_t size, stride;
  };
  std::vector<Dimension> dims;
  for (size_t d = 0; d < a.sizes.size(); ++d) {
    if (a.sizes[d] != 1) {
      dims.push_back({a.sizes[d], a.strides[d]});
    }
  }
  std::ranges::sort(dims, {}, &Dimension::stride);
  int64_t expected = 1;
  for (const Dimension& dim : dims) {
    if (dim.stride != expected) {
      return false;
    }
    expected *= dim.size;
  }
  return true;
}

inline bool is_gapless(const Tensor& tensor) { return is_gapless(geometry_of(tensor)); }

// Whether the elements of a row are neighbours in memory; of a tensor with a dimension.
inline bool has_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) < 2 || tensor.stride(last) == 1;
}

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data_of<T>(*tensor) : nullptr;
}

// Contiguous, on the device of `tensor`.
inline Tensor empty_on(const Tensor& tensor, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                       ScalarType dtype = ScalarType::Double) {
  return torch::stable::empty(sizes, dtype, std::nullopt, tensor.device());
}

// Nothing for a dtype that the stable interface does not know.
std::optional<ScalarType> scalar_type_of(const Tensor& tensor);

// For messages: as torch writes it in Python; "[2, 3]"; dtype, shape, strides and device.
std::string name_of(ScalarType dtype);
std::string text_of(torch::headeronly::IntHeaderOnlyArrayRef numbers);
std::string description(const Tensor& tensor);

}  // namespace fusedstep
