// A float32 in two halves: a bfloat16 that a forward pass can use, and the 16 bits it lacks.
#pragma once

#include "kernels/common/dtypes.h"

namespace fusedstep {

// The bfloat16 is the nearest one, and of two equally near the one of larger magnitude. Ties to
// even, as dtypes.h and torch round, cannot be had here: 65537 floats round to each even bfloat16,
// one more than 16 bits can distinguish. The two differ in one float of 131072.
struct Halves {
  BFloat16 nearest;
  uint16_t remainder;  // the float's low 16 bits
};

// Every float is restored to the bit, infinities and subnormals too; every NaN becomes 0x7fff0000.
FUSEDSTEP_HD Halves split(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  // Where the low half is 0x8000 or more, the nearest bfloat16 is the next one away from zero.
  const uint32_t rounded = nan ? 0x7fff0000u : bits + 0x8000u;
  const uint32_t low = nan ? 0u : bits;
  return {{static_cast<uint16_t>(rounded >> 16)}, static_cast<uint16_t>(low)};
}

// Where somebody has written another bfloat16, the remainder changes it by at most half of its last
// bit. No number comes out only where zero or infinity was written, and stays.
FUSEDSTEP_HD float join(BFloat16 nearest, uint16_t remainder) {
  const uint32_t high = nearest.bits - static_cast<uint32_t>(remainder >> 15);
  const float joined = bit_cast<float>(high << 16 | remainder);
  return joined == joined ? joined : widen(nearest);
}

}  // namespace fusedstep
