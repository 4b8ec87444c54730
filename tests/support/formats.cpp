// The generator and the number formats of kernels/common behind a C interface, for
// tests/support/compiled_formats.py.
#include "kernels/optim/quantize_tile.h"

using namespace fusedstep;

#define EXPORT extern "C" __attribute__((visibility("default")))

// The 16 bits of the elements [at, at + n), as a CPU's loop draws them, tile by tile.
EXPORT void random_by_tile(uint64_t seed, uint32_t array, uint32_t step, int64_t at, int n,
                           uint16_t* bits) {
  cpu::RandomTile room;
  for (int i = 0; i < n; i += cpu::kTile) {
    const int left = std::min(n - i, cpu::kTile);
    std::copy_n(cpu::fill_random({seed, array, step}, at + i, left, room), left, bits + i);
  }
}

// One by one, from the word of each element's group.
EXPORT void random_by_group(uint64_t seed, uint32_t array, uint32_t step, int64_t at, int n,
                            uint16_t* bits) {
  for (int64_t element = at; element < at + n; ++element) {
    const RandomKey key = random_key({seed, array, step}, element);
    const uint32_t word = random_word(key, static_cast<uint32_t>(element / kRandomGroup));
    *bits++ = static_cast<uint16_t>(random16(word, element % kRandomGroup));
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

// The rounded float of 24 bits, and its parts.
EXPORT FUSEDSTEP_CLONES void correct_all(const float* x, const uint8_t* random, float* rounded,
                                         uint16_t* nearest, uint8_t* corrections, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    rounded[i] = round_to_24_bits_stochastically(x[i], random[i]);
    const Halves halves = split(rounded[i]);
    nearest[i] = halves.nearest.bits;
    corrections[i] = correction_of(halves);
  }
}

EXPORT FUSEDSTEP_CLONES void join_corrections(const uint16_t* nearest, const uint8_t* corrections,
                                              float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = join(BFloat16{nearest[i]}, corrections[i]);
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

// Whole tensors, block by block.
EXPORT void encode_signed(const float* x, const uint16_t* random, int8_t* codes, float* scales,
                          int n) {
  cpu::encode_tile(x, random, codes, scales, n);
}

EXPORT void encode_unsigned(const float* x, const uint16_t* random, uint8_t* codes, float* scales,
                            int n) {
  cpu::encode_tile(x, random, codes, scales, n);
}

EXPORT void decode_signed(const int8_t* codes, const float* scales, float* x, int n) {
  cpu::decode_tile(codes, scales, x, n);
}

EXPORT void decode_unsigned(const uint8_t* codes, const float* scales, float* x, int n) {
  cpu::decode_tile(codes, scales, x, n);
}

EXPORT const int block_size;
const int block_size = kBlock;
