// The ops encode_state and decode_state: state to 8-bit codes and back, on the CPU, for
// checkpoints.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "csrc/checks.h"
#include "kernels/optim/quantize.h"

namespace fusedstep {
namespace {

// A tensor on the CPU of the same shape and strides, of torch's dtype `code`.
Tensor empty_like(const Tensor& like, int32_t code) {
  int64_t *sizes, *strides;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(like.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(like.get(), &strides));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(like.dim(), sizes, strides, code,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Codes in the layout of `x`, and the scales of their blocks in the order of memory.
std::tuple<Tensor, Tensor> encode_state(const Tensor& x, bool is_signed) {
  Arg("encode_state", "x", x).is({ScalarType::Float}).gapless();
  Tensor codes = empty_like(x, is_signed ? aoti_torch_dtype_int8() : aoti_torch_dtype_uint8());
  const Tensor scales = empty_on(x, {blocks_of(x.numel())}, ScalarType::Float);
  const auto encode = [&](auto* to) {
    cpu::encode_state(data_of<float>(x), x.numel(), to, data_of<float>(scales));
  };
  is_signed ? encode(data_of<int8_t>(codes)) : encode(data_of<uint8_t>(codes));
  return {codes, scales};
}

// float32 in the layout of `codes`.
Tensor decode_state(const Tensor& codes, const Tensor& scales) {
  constexpr const char* kFunction = "decode_state";
  Arg(kFunction, "codes", codes).is({ScalarType::Char, ScalarType::Byte}).gapless();
  Arg(kFunction, "scales", scales)
      .is({ScalarType::Float})
      .gapless()
      .must(scales.numel() == blocks_of(codes.numel()), "have one element for each block of codes")
      .on_device_of(codes);
  Tensor x = empty_like(codes, aoti_torch_dtype_float32());
  const auto decode = [&](const auto* from) {
    cpu::decode_state(from, data_of<float>(scales), codes.numel(), data_of<float>(x));
  };
  dtype_of(codes) == Dtype::kInt8 ? decode(data_of<int8_t>(codes))
                                  : decode(data_of<uint8_t>(codes));
  return x;
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // float32 state to 8-bit codes (kernels/optim/quantize.h) and a scale for each block of them in
  // memory, and back; to the nearest code.
  m.def("encode_state(Tensor x, bool signed) -> (Tensor, Tensor)");
  m.def("decode_state(Tensor codes, Tensor scales) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("encode_state", TORCH_BOX(&fusedstep::encode_state));
  m.impl("decode_state", TORCH_BOX(&fusedstep::decode_state));
}
