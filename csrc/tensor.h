// What the adapters ask of a torch tensor, through the stable C interface.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/common/dtypes.h"

namespace fusedstep {

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

// Whether element i lies at the same place in both. Strides of dimensions of one element do not
// count.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  const int64_t dim = a.dim();
  if (dim != b.dim()) {
    return false;
  }
  const int64_t numel = a.numel();
  int64_t *a_sizes, *b_sizes, *a_strides, *b_strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(a.get(), &a_sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(b.get(), &b_sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(a.get(), &a_strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(b.get(), &b_strides));
  for (int64_t d = 0; d < dim; ++d) {
    if (a_sizes[d] != b_sizes[d] ||
        (numel > 0 && a_sizes[d] != 1 && a_strides[d] != b_strides[d])) {
      return false;
    }
  }
  return true;
}

struct Dimension {
  int64_t size;
  int64_t stride;  // in elements
};

inline std::vector<Dimension> dimensions(const Tensor& tensor) {
  int64_t *sizes, *strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  std::vector<Dimension> dims;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    dims.push_back({sizes[d], strides[d]});
  }
  return dims;
}

// Whether numel() elements from the first on are the tensor's, each once, in whatever order of
// dimensions: no gap, and none shared, as in an expanded tensor.
inline bool is_gapless(const Tensor& tensor) {
  if (tensor.numel() < 2) {
    return true;
  }
  auto dims = dimensions(tensor);
  std::erase_if(dims, [](const Dimension& dim) { return dim.size == 1; });
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

// Whether the elements lie in memory in the order of their indices, without gaps.
inline bool is_contiguous(const Tensor& tensor) {
  int64_t expected = 1;
  const auto dims = dimensions(tensor);
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->size != 1 && dim->stride != expected) {
      return tensor.numel() == 0;
    }
    expected *= dim->size;
  }
  return true;
}

// Whether it is contiguous, of one dimension and of the dtype with torch's `code`.
inline bool is_vector(const Tensor& tensor, int32_t code) {
  int32_t of_tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &of_tensor));
  return of_tensor == code && is_strided(tensor) && tensor.dim() == 1 && is_contiguous(tensor);
}

template <typename T>
T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

}  // namespace fusedstep
