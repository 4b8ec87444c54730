// Tiles of the smaller storage forms (kernels/optim/quantize.h, remainder.h), to float and back.
// A tile begins at a multiple of kBlock, its random bits at a multiple of kRandomGroup.
#pragma once

#include <algorithm>

#include "kernels/optim/master.h"
#include "kernels/optim/quantize.h"
#include "kernels/optim/random.h"
#include "kernels/optim/remainder.h"
#include "kernels/optim/tile.h"

namespace fusedstep::cpu {

// The random bits of the elements [at, at + n), n at most kTile.
FUSEDSTEP_CLONES inline void fill_random(const RandomStream& stream, int64_t at, int n,
                                         uint16_t* bits) {
  const int groups = (n + kRandomGroup - 1) / kRandomGroup;
  random_tile(stream, static_cast<uint64_t>(at) / kRandomGroup, groups, bits);
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

FUSEDSTEP_CLONES inline void split_tile(const float* from, BFloat16* nearest, uint16_t* remainder,
                                        int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    const Halves halves = split(from[i]);
    nearest[i] = halves.nearest;
    remainder[i] = halves.remainder;
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
FUSEDSTEP_CLONES inline float largest_of(const float* from, int n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t magnitude = bit_cast<int32_t>(from[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return bit_cast<float>(largest);
}

FUSEDSTEP_CLONES inline void decode_block(const int8_t* codes, float scale, float* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = decode_signed(codes[i], scale);
  }
}

FUSEDSTEP_CLONES inline void decode_block(const uint8_t* codes, float scale, float* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = decode_unsigned(codes[i], scale);
  }
}

FUSEDSTEP_CLONES inline void encode_block(const float* from, float inverse, const uint16_t* bits,
                                          int8_t* codes, int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    codes[i] = encode_signed(from[i], inverse, bits[i]);
  }
}

FUSEDSTEP_CLONES inline void encode_block(const float* from, float inverse, const uint16_t* bits,
                                          uint8_t* codes, int n) {
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    codes[i] = encode_unsigned(from[i], inverse, bits[i]);
  }
}

template <typename Code>
void decode_tile(const Code* codes, const float* scales, float* to, int n) {
  for (int i = 0; i < n; i += kBlock) {
    decode_block(codes + i, scales[i / kBlock], to + i, std::min(kBlock, n - i));
  }
}

template <typename Code>
void encode_tile(const float* from, const uint16_t* bits, Code* codes, float* scales, int n) {
  for (int i = 0; i < n; i += kBlock) {
    const int some = std::min(kBlock, n - i);
    const float scale = block_scale(largest_of(from + i, some));
    encode_block(from + i, 1 / scale, bits + i, codes + i, some);
    scales[i / kBlock] = scale;
  }
}

}  // namespace fusedstep::cpu
