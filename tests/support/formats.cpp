// The generator and the number formats of kernels/common behind a C interface, for
// tests/support/compiled_formats.py.
#include "kernels/optim/quantize.h"
#include "kernels/optim/random.h"
#include "kernels/optim/remainder.h"

using namespace fusedstep;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void philox_words(const uint32_t* counters, uint32_t key0, uint32_t key1, uint32_t* words,
                         int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t* c = counters + 4 * i;
    const Words x = philox({c[0], c[1], c[2], c[3]}, key0, key1);
    words[4 * i] = x.a, words[4 * i + 1] = x.b, words[4 * i + 2] = x.c, words[4 * i + 3] = x.d;
  }
}

EXPORT FUSEDSTEP_CLONES void random_by_tile(uint64_t seed, uint32_t array, uint32_t step,
                                            uint64_t first_group, int groups, uint16_t* bits) {
  random_tile({seed, array, step}, first_group, groups, bits);
}

// As the thread that owns a group would on a GPU.
EXPORT void random_by_group(uint64_t seed, uint32_t array, uint32_t step, uint64_t first_group,
                            int groups, uint16_t* bits) {
  for (int g = 0; g < groups; ++g) {
    const Words words = random_words({seed, array, step}, first_group + g);
    for (int j = 0; j < kRandomGroup; ++j) {
      bits[kRandomGroup * g + j] = static_cast<uint16_t>(random16(words, j));
    }
  }
}

EXPORT FUSEDSTEP_CLONES void exchange_all(const uint16_t* bits, uint16_t* exchanged, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    exchanged[i] = static_cast<uint16_t>(exchange_bytes(bits[i]));
  }
}

EXPORT FUSEDSTEP_CLONES void round_stochastically(const float* x, const uint16_t* random,
                                                  uint16_t* bits, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    bits[i] = round_to_bfloat16_stochastically(x[i], random[i]).bits;
  }
}

EXPORT FUSEDSTEP_CLONES void split_all(const float* x, uint16_t* nearest, uint16_t* remainders,
                                       int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const Halves halves = split(x[i]);
    nearest[i] = halves.nearest.bits;
    remainders[i] = halves.remainder;
  }
}

EXPORT FUSEDSTEP_CLONES void join_all(const uint16_t* nearest, const uint16_t* remainders, float* x,
                                      int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = join(BFloat16{nearest[i]}, remainders[i]);
  }
}

// How many of all 2^32 floats do not come back from their halves bit for bit, NaNs left out.
EXPORT FUSEDSTEP_CLONES int64_t count_lost_floats() {
  int64_t lost = 0;
  for (uint32_t high = 0; high < 0x10000u; ++high) {
    uint32_t lost_here = 0;
    for (uint32_t low = 0; low < 0x10000u; ++low) {
      const uint32_t bits = high << 16 | low;
      const Halves halves = split(bit_cast<float>(bits));
      const uint32_t back = bit_cast<uint32_t>(join(halves.nearest, halves.remainder));
      lost_here += (bits & 0x7fffffffu) <= 0x7f800000u && back != bits;
    }
    lost += lost_here;
  }
  return lost;
}

EXPORT FUSEDSTEP_CLONES void encode_signed_block(const float* x, float largest,
                                                 const uint16_t* random, int8_t* codes, int n) {
  const float inverse = 1.0f / block_scale(largest);
  for (int i = 0; i < n; ++i) {
    codes[i] = encode_signed(x[i], inverse, random[i]);
  }
}

EXPORT FUSEDSTEP_CLONES void decode_signed_block(const int8_t* codes, float scale, float* x,
                                                 int n) {
  for (int i = 0; i < n; ++i) {
    x[i] = decode_signed(codes[i], scale);
  }
}

EXPORT FUSEDSTEP_CLONES void encode_unsigned_block(const float* x, float largest,
                                                   const uint16_t* random, uint8_t* codes, int n) {
  const float inverse = 1.0f / block_scale(largest);
  for (int i = 0; i < n; ++i) {
    codes[i] = encode_unsigned(x[i], inverse, random[i]);
  }
}

EXPORT FUSEDSTEP_CLONES void decode_unsigned_block(const uint8_t* codes, float scale, float* x,
                                                   int n) {
  for (int i = 0; i < n; ++i) {
    x[i] = decode_unsigned(codes[i], scale);
  }
}

EXPORT const int block_size;
const int block_size = kBlock;
