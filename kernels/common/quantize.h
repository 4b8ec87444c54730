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

// The scale of a block from its largest magnitude (nan_max of norm.h). Where that is NaN or
// infinite, all of the block becomes NaN or infinite. The lower bound keeps 1 / scale finite.
FUSEDSTEP_HD float block_scale(float largest) { return largest < 0x1p-126f ? 0x1p-126f : largest; }

// Codes of either sign, -127 to 127: x = scale * c / (254 - |c|), the inverse of the softsign
// c = 127 * 2y / (1 + |y|) of y = x / scale. A code is 1/254 of the scale wide near zero, 4 times
// that near the largest magnitude, which itself is exact, as is zero.
FUSEDSTEP_HD float decode_signed(int8_t code, float scale) {
  const float c = static_cast<float>(code);
  return c / (254.0f - (c < 0 ? -c : c)) * scale;
}

FUSEDSTEP_HD int8_t encode_signed(float x, float scale) {
  const float magnitude = x < 0 ? -x : x;
  // Halved before they are added, as the sum of two floats can be infinite.
  float c = x / (0.5f * scale + 0.5f * magnitude) * 127.0f;
  c = c < 127.0f ? c : 127.0f;  // NaN too: converting it to an integer would be undefined
  c = c > -127.0f ? c : -127.0f;
  return static_cast<int8_t>(static_cast<int>(c < 0 ? c - 0.5f : c + 0.5f));
}

// Codes of what is never negative, 0 to 255: x = scale * (c / 255)^2. Zero is exact and the only
// x that becomes zero: where a second moment did, the first would be divided by eps alone.
FUSEDSTEP_HD float decode_unsigned(uint8_t code, float scale) {
  const float c = static_cast<float>(code);
  return c * c * (1.0f / 65025.0f) * scale;
}

// Rounds up with probability (x - lower) / (upper - lower), so that the mean is x, save that no
// positive x falls below code 1. To nearest, a mean over 1000 steps would never move: a step
// changes it by less than half a code. `inverse` is 1 / scale.
FUSEDSTEP_HD uint8_t encode_unsigned(float x, float inverse, uint32_t random16) {
  float root = std::sqrt(x * inverse) * 255.0f;
  root = root < 255.0f ? root : 255.0f;  // NaN too
  const float lower = static_cast<float>(static_cast<int>(root));
  const float uniform = (static_cast<float>(static_cast<int>(random16)) + 0.5f) * 0x1p-16f;
  // Selected as numbers: with an `up ?` of codes GCC would leave a branch in the loop.
  const float step = (root - lower) * (root + lower) > uniform * (2 * lower + 1) ? 1.0f : 0.0f;
  const float least = x > 0 ? 1.0f : 0.0f;
  const float code = lower + step;
  return static_cast<uint8_t>(static_cast<int>(code > least ? code : least));
}

}  // namespace fusedstep
