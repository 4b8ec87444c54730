// Smaller forms of optimizer state and parameters: bfloat16 rounded stochastically, and 8-bit codes
// with one float32 scale for each block of neighbouring elements.
//
// No root is taken to find a code: a float's bits are a logarithm of it, piecewise linear, so half
// of them are the bits of something close to its square root, and a quarter those of its fourth
// root. Codes count in steps of these, which makes them small floats with fewer bits of mantissa
// the smaller they are. Within a step they are linear, so that rounding is unbiased. All of it is
// exact or rounded as IEEE asks, the same on every device. The formats were chosen by the errors
// they make on moments of a training: bench/state_formats.py.
#pragma once

#include <cmath>

#include "kernels/common/dtypes.h"

namespace fusedstep {

// Rounds up with the probability of the part that is cut off, in units of 2^-16; so what bfloat16
// can represent stays, and the mean over `random16` is x. Beyond the largest finite bfloat16 there
// is no such mean: there it rounds towards zero. A NaN becomes 0x7fff.
FUSEDSTEP_HD BFloat16 round_to_bfloat16_stochastically(float x, uint32_t random16) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sum = bits + (std::fabs(x) <= 0x1.fep127f ? random16 : 0u);
  return {static_cast<uint16_t>((x == x ? sum : 0x7fff0000u) >> 16)};
}

// Elements of a block, counted from the tensor's first; the last block may be shorter. Rows of
// weights mostly are multiples of it, and a row's gradients differ less than those of several.
constexpr int kBlock = 128;

FUSEDSTEP_HD int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

// A float's bits are its logarithm to base 2, piecewise linear. Shifting them gives something close
// to a root, and back: piecewise linear as well, exact at the powers of two, and monotonous. `one`
// is the root of 1, the unit that roots are counted in.
template <int shift>
FUSEDSTEP_HD float shifted_root(float x, float one) {
  const uint32_t origin = bit_cast<uint32_t>(one) - (bit_cast<uint32_t>(1.0f) >> shift);
  return bit_cast<float>((bit_cast<uint32_t>(x) >> shift) + origin);
}

template <int shift>
FUSEDSTEP_HD float shifted_power(float root, float one) {
  const uint32_t origin = bit_cast<uint32_t>(1.0f) - (bit_cast<uint32_t>(one) << shift);
  return bit_cast<float>((bit_cast<uint32_t>(root) << shift) + origin);
}

// Codes of a block of states: by int8_t of either sign, by uint8_t of what is never negative. Each
// stands for a level, in units of the block's scale, its largest magnitude, which is the top code.
// Between two levels x is rounded up with the probability (x - lower) / (upper - lower), to 2^-16,
// so that the mean is x. To nearest, a mean over many steps would stay where it is: a step changes
// it by less than half a code.
template <typename Code>
struct Codes;

// -127 to 127. The level is the square of |c| + 2 less that of 2: 0 1 3 5 7 11 15 19 23 27 31 39 ..
// 4159 in units of 1 / 4159, as in a float with a mantissa of 5 bits in the two octaves below the
// top, of 4 in the next two, and so on. Counting from 2 makes zero exact, and no step between two
// levels crosses a power of two, where the square has a kink.
template <>
struct Codes<int8_t> {
  static constexpr float kTop = 1 + 0x1p-6f - 0x1p-12f;  // the square of 129 less that of 2

  static FUSEDSTEP_HD float decode(int8_t code, float scale) {
    const float c = static_cast<float>(code);
    const float level = (shifted_power<1>(std::fabs(c) + 2, 128) - 0x1p-12f) * (1 / kTop);
    return std::copysign(level, c) * scale;
  }

  // `inverse` is kTop / scale.
  static FUSEDSTEP_HD int8_t encode(float x, float inverse, uint32_t random16) {
    const float y = std::fabs(x) * inverse + 0x1p-12f;
    const float code = shifted_root<1>(y, 128 * 0x1p16f) - 2 * 0x1p16f;  // in units of 2^-16
    const auto signed_code = static_cast<int32_t>(std::copysign(code, x));
    return static_cast<int8_t>((signed_code + static_cast<int32_t>(random16)) >> 16);
  }
};

// 3 to 255. The level is the fourth power of c + 1: a mantissa of 5 bits in the four octaves below
// the top, of 4 in the next four, and so on down to 2^-24, since second moments range like the
// squares of first ones. Everything below becomes code 3, zero too: where a second moment became
// zero, the first would be divided by eps alone.
template <>
struct Codes<uint8_t> {
  static constexpr float kTop = 1;           // the fourth power of 256
  static constexpr float kLeast = 0x1p-24f;  // that of 4

  static FUSEDSTEP_HD float decode(uint8_t code, float scale) {
    return shifted_power<2>(static_cast<float>(code) + 1, 256) * scale;
  }

  static FUSEDSTEP_HD uint8_t encode(float x, float inverse, uint32_t random16) {
    const float y = x * inverse;
    const float code = shifted_root<2>(y > kLeast ? y : kLeast, 256 * 0x1p16f);
    const auto count = static_cast<int32_t>(code) - (1 << 16);
    return static_cast<uint8_t>((count + static_cast<int32_t>(random16)) >> 16);
  }
};

// The scale of a block from its largest magnitude. The lower bound keeps kTop / scale finite and
// the least level above zero.
//
// A block without anything but zeros has the scale 0. One with a NaN, an infinity or what is about
// to become one has NaN or infinity. The codes of these are all 0, as are those of state never
// written.
FUSEDSTEP_HD bool has_codes(float largest) { return largest > 0 && largest <= 0x1p126f; }

FUSEDSTEP_HD float block_scale(float largest) {
  if (!has_codes(largest)) {
    return largest * 4;
  }
  return largest < 0x1p-110f ? 0x1p-110f : largest;
}

// State to codes and back outside of a step: for checkpoints.
namespace cpu {

// `size` elements in the order of memory, and a scale for each kBlock of them. Rounded to
// the nearest code: nothing accumulates here, as it does from step to step.
void encode_state(const float* x, int64_t size, int8_t* codes, float* scales);
void encode_state(const float* x, int64_t size, uint8_t* codes, float* scales);

void decode_state(const int8_t* codes, const float* scales, int64_t size, float* x);
void decode_state(const uint8_t* codes, const float* scales, int64_t size, float* x);

}  // namespace cpu

}  // namespace fusedstep
