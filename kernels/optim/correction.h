// A float of 24 bits in two parts: a bfloat16 that a forward pass can use, and the next 8 bits: the
// upper half of the remainder (remainder.h) of a float32 whose last 8 bits are 0.
#pragma once

#include "kernels/optim/remainder.h"

namespace fusedstep {

// Rounds up with the probability of the part that is cut off, in units of 2^-8; so what 24 bits can
// represent stays, and the mean over `random8` is x. To nearest, updates below 2^-17 of a parameter
// would be lost. Beyond the largest finite number there is no such mean: there, to nearest.
FUSEDSTEP_HD float round_to_24_bits_stochastically(float x, uint32_t random8) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t added = (bits & 0x7fffffffu) > 0x7f7fff00u ? 0x80u : random8;
  return x == x ? bit_cast<float>((bits + added) & 0xffffff00u) : x;
}

// The halves are those of a float of 24 bits.
FUSEDSTEP_HD uint8_t correction_of(Halves halves) {
  return static_cast<uint8_t>(halves.remainder >> 8);
}

FUSEDSTEP_HD float join(BFloat16 nearest, uint8_t correction) {
  return join(nearest, static_cast<uint16_t>(correction << 8));
}

}  // namespace fusedstep
