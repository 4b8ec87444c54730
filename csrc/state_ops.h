// State to 8-bit codes and back as ops, on the CPU: for checkpoints, which are rare.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "csrc/checks.h"
#include "csrc/empty.h"
#include "kernels/optim/quantize.h"

namespace fusedstep {

struct StateOps {
  // Codes in the layout of `x`, and the scales of their blocks in the order of memory.
  static std::tuple<Tensor, Tensor> encode_state(const Tensor& x, bool is_signed) {
    constexpr const char* kFunction = "encode_state";
    require(dtype_of(x) == Dtype::kFloat32 && is_strided(x), kFunction, "x", -1,
            "be a dense float32 tensor", "another dtype or layout");
    require_gapless(kFunction, "x", -1, x);
    Tensor codes = empty_like(x, is_signed ? aoti_torch_dtype_int8() : aoti_torch_dtype_uint8());
    const Tensor scales = empty_beside(x, {blocks_of(x.numel())}, ScalarType::Float);
    const auto encode = [&](auto* to) {
      cpu::encode_state(static_cast<const float*>(x.data_ptr()), x.numel(), to,
                        static_cast<float*>(scales.data_ptr()));
    };
    if (is_signed) {
      encode(static_cast<int8_t*>(codes.data_ptr()));
    } else {
      encode(static_cast<uint8_t*>(codes.data_ptr()));
    }
    return {codes, scales};
  }

  // float32 in the layout of `codes`.
  static Tensor decode_state(const Tensor& codes, const Tensor& scales) {
    constexpr const char* kFunction = "decode_state";
    const auto dtype = dtype_of(codes);
    require((dtype == Dtype::kInt8 || dtype == Dtype::kUInt8) && is_strided(codes), kFunction,
            "codes", -1, "be a dense int8 or uint8 tensor", "another dtype or layout");
    require_gapless(kFunction, "codes", -1, codes);
    require(dtype_of(scales) == Dtype::kFloat32 && is_strided(scales) && is_gapless(scales),
            kFunction, "scales", -1, "be a gapless float32 tensor", "another dtype or layout");
    require(scales.numel() == blocks_of(codes.numel()), kFunction, "scales", -1,
            "have one element for each block of codes", scales.numel());
    require_same_device(kFunction, "scales", -1, scales, codes);
    Tensor x = empty_like(codes, aoti_torch_dtype_float32());
    const auto decode = [&](const auto* from) {
      cpu::decode_state(from, static_cast<const float*>(scales.data_ptr()), codes.numel(),
                        static_cast<float*>(x.data_ptr()));
    };
    if (dtype == Dtype::kInt8) {
      decode(static_cast<const int8_t*>(codes.data_ptr()));
    } else {
      decode(static_cast<const uint8_t*>(codes.data_ptr()));
    }
    return x;
  }

 private:
  // A tensor on the CPU of the same shape and strides, of torch's dtype `code`.
  static Tensor empty_like(const Tensor& like, int32_t code) {
    int64_t *sizes, *strides;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(like.get(), &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(like.get(), &strides));
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(like.dim(), sizes, strides, code,
                                                    aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
};

}  // namespace fusedstep
