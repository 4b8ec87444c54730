// Smaller forms of optimizer state and parameters: bfloat16 rounded stochastically, and 8-bit codes
// with one float32 scale for each block of neighbouring elements.
//
// Only + - * / sqrt and comparisons, so that every device computes the same codes. The formats and
// the roundings were chosen by the errors they make on moments of a training:
// bench/state_formats.py.
#pragma once

#include <cmath>

#include "kernels/common/dtypes.h"

namespace fusedstep {

// Rounds up with the probability of the part that is cut off, in units of 2^-16; so what bfloat16
// can represent stays, and the mean over `random16` is x. Beyond the largest finite bfloat16 there
// is no such mean: there it rounds to nearest, and a NaN becomes 0x7fff.
FUSEDSTEP_HD BFloat16 round_to_bfloat16_stochastically(float x, uint32_t random16) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const auto rounded = static_cast<uint16_t>((bits + random16) >> 16);
  const uint16_t nearest = round_to_bfloat16(x).bits;
  return {(bits & 0x7fffffffu) > 0x7f7f0000u ? nearest : rounded};
}

// Elements of a block, counted from the tensor's first; the last block may be shorter. Rows of
// weights mostly are multiples of it, and a row's gradients differ less than those of several.
constexpr int kBlock = 128;

FUSEDSTEP_HD int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

// The scale of a block from its largest magnitude (nan_max of kernels/common/reduce.h). Where that
// is NaN or infinite, all of the block becomes NaN or infinite. The lower bound keeps 1 / scale
// finite and code 1 above zero.
FUSEDSTEP_HD float block_scale(float largest) { return largest < 0x1p-110f ? 0x1p-110f : largest; }

// Codes of either sign, -127 to 127: x = scale * (c / 127)^2 with the sign of c. The square roots
// give small magnitudes codes of their own, down to 6e-5 of the largest, where a block spans rows
// of unlike gradients. Zero and the largest magnitude are exact.
FUSEDSTEP_HD float decode_signed(int8_t code, float scale) {
  const float c = static_cast<float>(code);
  return c * (c < 0 ? -c : c) * (1.0f / 16129.0f) * scale;
}

// Codes of what is never negative, 0 to 255: x = scale * (c / 255)^4, down to 2.4e-10 of the
// largest: second moments range like the squares of first ones. Zero is exact and the only x that
// becomes zero: where a second moment did, the first would be divided by eps alone.
FUSEDSTEP_HD float decode_unsigned(uint8_t code, float scale) {
  const float c = static_cast<float>(code);
  const float root = c * c * (1.0f / 65025.0f);
  return root * root * scale;
}

// A number between 0 and 1.
FUSEDSTEP_HD float uniform(uint32_t random16) {
  return (static_cast<float>(static_cast<int>(random16)) + 0.5f) * 0x1p-16f;
}

// Both encoders round to the code below or above with the probability (x - lower) / (upper -
// lower) of the upper one, so that the mean is x. To nearest, a mean over many steps would stay
// where it is: a step changes it by less than half a code. `inverse` is 1 / scale.
//
// The choices are between numbers, as GCC leaves branches in a loop where they are between codes.
// A NaN takes the largest code, as no integer stands for it; its block's scale is NaN.
FUSEDSTEP_HD int8_t encode_signed(float x, float inverse, uint32_t random16) {
  float root = std::sqrt((x < 0 ? -x : x) * inverse) * 127.0f;
  root = root < 127.0f ? root : 127.0f;
  const float lower = static_cast<float>(static_cast<int>(root));
  const float above = (root - lower) * (root + lower);  // root^2 - lower^2, in a stable form
  const float width = 2 * lower + 1;
  const float code = lower + (above > uniform(random16) * width ? 1.0f : 0.0f);
  return static_cast<int8_t>(static_cast<int>(x < 0 ? -code : code));
}

// The mean of a positive x below code 1 is code 1.
FUSEDSTEP_HD uint8_t encode_unsigned(float x, float inverse, uint32_t random16) {
  float root = std::sqrt(std::sqrt(x * inverse)) * 255.0f;
  root = root < 255.0f ? root : 255.0f;
  const float lower = static_cast<float>(static_cast<int>(root)), upper = lower + 1;
  const float above = (root - lower) * (root + lower) * (root * root + lower * lower);
  const float width = (2 * lower + 1) * (upper * upper + lower * lower);
  const float code = lower + (above > uniform(random16) * width ? 1.0f : 0.0f);
  const float least = x > 0 ? 1.0f : 0.0f;
  return static_cast<uint8_t>(static_cast<int>(code > least ? code : least));
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
