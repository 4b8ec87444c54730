// The storage types of arrays and the conversions between them: the same bits on every device.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/common/macros.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace fusedstep {

// Parameters and gradients are of the floating-point types; the integers hold codes (quantize.h),
// remainders (remainder.h) and corrections (correction.h).
enum class Dtype : uint8_t {
  kNone,
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kInt8,
  kUInt8,
  kInt16
};

// The bytes of an element.
FUSEDSTEP_HD int width_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    case Dtype::kInt8:
    case Dtype::kUInt8:
      return 1;
    default:
      return 2;
  }
}

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The Dtype of a floating-point storage type.
template <typename Storage>
constexpr Dtype kDtypeOf = std::is_same_v<Storage, double>     ? Dtype::kFloat64
                           : std::is_same_v<Storage, BFloat16> ? Dtype::kBFloat16
                           : std::is_same_v<Storage, Half>     ? Dtype::kFloat16
                                                               : Dtype::kFloat32;

// The type a parameter is computed in: double for float64, float for everything else.
template <typename Storage>
using Compute = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

FUSEDSTEP_HD Dtype compute_dtype(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

template <typename To, typename From>
FUSEDSTEP_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

FUSEDSTEP_HD float widen(BFloat16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Shifts exponent and mantissa into float's place, then corrects the bias by an exact
// multiplication, which also normalises subnormals. Branch-free so that loops vectorise.
// A GPU has one instruction for each direction; the values are the same.
FUSEDSTEP_HD float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const float finite = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = magnitude | 0x7f800000u;  // infinity and NaN keep their mantissa
  const uint32_t bits = magnitude >= (0x7c00u << 13) ? special : bit_cast<uint32_t>(finite);
  return bit_cast<float>(bits | (x.bits & 0x8000u) << 16);
#endif
}

// Round to nearest, ties to even. Every NaN becomes 0x7fff, as the GPU's own conversion does.
FUSEDSTEP_HD BFloat16 round_to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return BFloat16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded)};
}

FUSEDSTEP_HD Half round_to_half(float x) {
#if defined(__CUDA_ARCH__)
  return Half{__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal range: rebias the exponent by 127 - 15 and round the 13 bits that fall away.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 aligns the mantissa at half's subnormal unit; the adder rounds.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and above round to infinity
  result = magnitude > 0x7f800000u ? 0x7fffu : result | (bits >> 16 & 0x8000u);
  return Half{static_cast<uint16_t>(result)};
#endif
}

// Storage to compute type and back. A float64 gradient of a narrower parameter rounds once, to
// float.
template <typename T, typename Storage>
FUSEDSTEP_HD T load_as(Storage x) {
  if constexpr (std::is_arithmetic_v<Storage>) {
    return static_cast<T>(x);
  } else {
    return static_cast<T>(widen(x));
  }
}

template <typename Storage, typename T>
FUSEDSTEP_HD Storage store_as(T x) {
  if constexpr (std::is_same_v<Storage, BFloat16>) {
    return round_to_bfloat16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<Storage, Half>) {
    return round_to_half(static_cast<float>(x));
  } else {
    return static_cast<Storage>(x);
  }
}

// Calls f with a value of the storage type that `dtype` names, e.g. to pick a template.
template <typename F>
FUSEDSTEP_HD auto with_storage(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Half{});
    default:
      return f(float{});
  }
}

}  // namespace fusedstep
