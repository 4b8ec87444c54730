// Tensors in messages: their dtype, shape, strides and device as text.
#include "csrc/tensor.h"

#include <exception>
#include <utility>

namespace fusedstep {
namespace {

std::string dtype_name(const Tensor& tensor) {
  if (const auto dtype = scalar_type_of(tensor)) {
    return name_of(*dtype);
  }
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return "torch's dtype " + std::to_string(code);
}

std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) {
    return "cpu";
  }
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  const std::string name =
      tensor.is_cuda() ? "cuda" : "torch's device type " + std::to_string(type);
  return name + ":" + std::to_string(tensor.get_device());
}

}  // namespace

std::optional<ScalarType> scalar_type_of(const Tensor& tensor) {
  try {
    return tensor.scalar_type();
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

std::string name_of(ScalarType dtype) {
  static constexpr std::pair<ScalarType, const char*> kNames[] = {
      {ScalarType::Float, "float32"},
      {ScalarType::Double, "float64"},
      {ScalarType::BFloat16, "bfloat16"},
      {ScalarType::Half, "float16"},
      {ScalarType::Char, "int8"},
      {ScalarType::Byte, "uint8"},
      {ScalarType::Short, "int16"},
      {ScalarType::Int, "int32"},
      {ScalarType::Long, "int64"},
      {ScalarType::Bool, "bool"},
      {ScalarType::ComplexFloat, "complex64"},
      {ScalarType::ComplexDouble, "complex128"}};
  const auto* const found =
      std::ranges::find(kNames, dtype, &std::pair<ScalarType, const char*>::first);
  return found != std::end(kNames) ? found->second : torch::headeronly::toString(dtype);
}

std::string text_of(torch::headeronly::IntHeaderOnlyArrayRef numbers) {
  std::string text = "[";
  for (const int64_t number : numbers) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  }
  return text + "]";
}

std::string description(const Tensor& tensor) {
  const std::string layout =
      is_strided(tensor) ? "strides " + text_of(tensor.strides()) : "a layout without strides";
  return dtype_name(tensor) + " with shape " + text_of(tensor.sizes()) + " and " + layout + " on " +
         device_name(tensor);
}

}  // namespace fusedstep
