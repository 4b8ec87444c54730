// Tiles of the smaller storage forms (kernels/optim/{quantize,remainder,correction}.h), to float
// and back.
// A tile begins at a multiple of kBlock.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/optim/correction.h"
#include "kernels/optim/master.h"
#include "kernels/optim/quantize.h"
#include "kernels/optim/random.h"
#include "kernels/optim/remainder.h"
#include "kernels/optim/tile.h"

namespace fusedstep::cpu {

// Room for the random bits of a tile, which may begin in the middle of a word.
struct RandomTile {
  alignas(64) uint16_t bits[kTile + kRandomGroup];
};

// The random bits of the elements [at, at + n), n at most kTile; they lie in `room`.
FUSEDSTEP_CLONES inline uint16_t* fill_random(const RandomStream& stream, int64_t at, int n,
                                              RandomTile& room) {
  static_assert(std::endian::native == std::endian::little, "a word's low half comes first");
  using Aliasing = uint32_t __attribute__((may_alias));
  auto* const words = reinterpret_cast<Aliasing*>(room.bits);
  const RandomKey key = random_key(stream, static_cast<uint64_t>(at));
  const auto first = static_cast<uint32_t>(at / kRandomGroup);
  const int skipped = static_cast<int>(at % kRandomGroup);
  FUSEDSTEP_IVDEP
  for (int i = 0; i < (skipped + n + 1) / kRandomGroup; ++i) {
    words[i] = random_word(key, first + i);
  }
  return room.bits + skipped;
}

FUSEDSTEP_CLONES inline void exchange_tile(uint16_t* bits, int n) {
  for (int i = 0; i < n; ++i) {
    bits[i] = static_cast<uint16_t>(exchange_bytes(bits[i]));
  }
}

// A master takes over what was written to its parameter; `to` may be the master.
FUSEDSTEP_CLONES inline void take_over_tile(const BFloat16* param, const float* master, float* to,
                                            int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    to[i] = master_or_written(master[i], param[i]);
  }
}

FUSEDSTEP_CLONES inline void join_tile(const BFloat16* nearest, const uint16_t* remainder,
                                       float* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = join(nearest[i], remainder[i]);
  }
}

FUSEDSTEP_CLONES inline void join_tile(const BFloat16* nearest, const uint8_t* correction,
                                       float* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = join(nearest[i], correction[i]);
  }
}

FUSEDSTEP_CLONES inline void split_tile(const float* from, BFloat16* nearest, uint16_t* remainder,
                                        int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    const Halves halves = split(from[i]);
    nearest[i].bits = halves.nearest.bits;  // copies of structs are not vectorised
    remainder[i] = halves.remainder;
  }
}

// Rounds the tile itself to 24 bits, too. Two loops of two widths each are twice as fast as one.
FUSEDSTEP_CLONES inline void correct_tile(float* values, const uint16_t* bits, BFloat16* nearest,
                                          uint8_t* correction, int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    values[i] = round_to_24_bits_stochastically(values[i], bits[i] & 0xffu);
  }
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    const Halves halves = split(values[i]);
    nearest[i].bits = halves.nearest.bits;
    correction[i] = correction_of(halves);
  }
}

FUSEDSTEP_CLONES inline void round_tile(const float* from, const uint16_t* bits, BFloat16* to,
                                        int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    to[i] = round_to_bfloat16_stochastically(from[i], bits[i]);
  }
}

// The largest magnitude, a NaN above all: as integers magnitudes have the same order, and a plain
// maximum of integers becomes vector instructions, twenty times as fast as nan_max.
FUSEDSTEP_HD float largest_of(const float* from, int n) {
  int32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t magnitude = bit_cast<int32_t>(from[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return bit_cast<float>(largest);
}

template <typename Code>
FUSEDSTEP_HD void decode_block(const Code* codes, float scale, float* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = Codes<Code>::decode(codes[i], scale);
  }
}

// Returns the scale.
template <typename Code>
FUSEDSTEP_HD float encode_block(const float* from, const uint16_t* bits, Code* codes, int n) {
  const float largest = largest_of(from, n);
  const float scale = block_scale(largest);
  if (!has_codes(largest)) {
    std::fill_n(codes, n, Code{0});
    return scale;
  }
  const float inverse = Codes<Code>::kTop / scale;
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    codes[i] = Codes<Code>::encode(from[i], inverse, bits[i]);
  }
  return scale;
}

// Block by block; the size of a whole one is a constant, which spares its loops their ends.
template <typename Code>
FUSEDSTEP_CLONES void decode_tile(const Code* codes, const float* scales, float* to, int n) {
  for (; n >= kBlock; n -= kBlock, codes += kBlock, to += kBlock) {
    decode_block(codes, *scales++, to, kBlock);
  }
  if (n > 0) {
    decode_block(codes, *scales, to, n);
  }
}

template <typename Code>
FUSEDSTEP_CLONES void encode_tile(const float* from, const uint16_t* bits, Code* codes,
                                  float* scales, int n) {
  for (; n >= kBlock; n -= kBlock, from += kBlock, bits += kBlock, codes += kBlock) {
    *scales++ = encode_block(from, bits, codes, kBlock);
  }
  if (n > 0) {
    *scales = encode_block(from, bits, codes, n);
  }
}

}  // namespace fusedstep::cpu
