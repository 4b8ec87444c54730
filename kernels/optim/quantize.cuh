// Packs of the smaller storage forms (kernels/optim/{quantize,remainder,correction}.h), to the
// compute type and back. They exist for float32 computations alone; for others the functions do
// nothing.
#pragma once

#include "kernels/common/vector.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/optim/correction.h"
#include "kernels/optim/master.h"
#include "kernels/optim/quantize.h"
#include "kernels/optim/random.h"
#include "kernels/optim/remainder.h"

namespace fusedstep::cuda {

// A master takes over what was written to its parameter.
template <typename T, int n>
__device__ void take_over_pack([[maybe_unused]] const Raw& param, [[maybe_unused]] T (&master)[n]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    BFloat16 written[n];
    memcpy(written, &param, sizeof(written));
#pragma unroll
    for (int j = 0; j < n; ++j) {
      master[j] = master_or_written(master[j], written[j]);
    }
  }
}

// Remainders are uint16_t, corrections uint8_t.
template <typename Low, typename T, int n>
__device__ void join_pack([[maybe_unused]] const Raw& nearest, [[maybe_unused]] const Raw& rest,
                          [[maybe_unused]] T (&to)[n]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    BFloat16 high[n];
    Low low[n];
    memcpy(high, &nearest, sizeof(high));
    memcpy(low, &rest, sizeof(low));
#pragma unroll
    for (int j = 0; j < n; ++j) {
      to[j] = join(high[j], low[j]);
    }
  }
}

// Rounds the values themselves to 24 bits, too, by the random bits of the pack.
template <typename Random, typename T, int n>
__device__ void correct_pack([[maybe_unused]] T (&values)[n], [[maybe_unused]] const Random& random,
                             [[maybe_unused]] Raw& nearest, [[maybe_unused]] Raw& correction) {
  if constexpr (sizeof(T) == sizeof(float)) {
    BFloat16 high[n];
    uint8_t low[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      values[j] = round_to_24_bits_stochastically(values[j], random16(random, j) & 0xffu);
      const Halves halves = split(values[j]);
      high[j] = halves.nearest;
      low[j] = correction_of(halves);
    }
    memcpy(&nearest, high, sizeof(high));
    memcpy(&correction, low, sizeof(low));
  }
}

template <typename T, int n>
__device__ void split_pack([[maybe_unused]] const T (&from)[n], [[maybe_unused]] Raw& nearest,
                           [[maybe_unused]] Raw& remainder) {
  if constexpr (sizeof(T) == sizeof(float)) {
    BFloat16 high[n];
    uint16_t low[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const Halves halves = split(from[j]);
      high[j] = halves.nearest;
      low[j] = halves.remainder;
    }
    memcpy(&nearest, high, sizeof(high));
    memcpy(&remainder, low, sizeof(low));
  }
}

// The random words of a pack.
template <int n>
struct RandomPack {
  static constexpr int kWords = (n + kRandomGroup - 1) / kRandomGroup;
  uint32_t words[kWords];
};

// Of the n elements that begin at `element`.
template <int n>
__device__ RandomPack<n> random_pack(const RandomKey& key, int64_t element) {
  const auto first = static_cast<uint32_t>(element / kRandomGroup);
  RandomPack<n> pack;
#pragma unroll
  for (int i = 0; i < pack.kWords; ++i) {
    pack.words[i] = random_word(key, first + i);
  }
  if (element % kRandomGroup != 0) {  // in the middle of a word; the same for all threads
    uint32_t next = random_word(key, first + pack.kWords);
#pragma unroll
    for (int i = pack.kWords - 1; i >= 0; --i) {
      const uint32_t word = pack.words[i];
      pack.words[i] = word >> 16 | next << 16;
      next = word;
    }
  }
  return pack;
}

template <int n>
__device__ RandomPack<n> exchange_bytes(RandomPack<n> pack) {
#pragma unroll
  for (uint32_t& word : pack.words) {
    word = fusedstep::exchange_bytes(word);
  }
  return pack;
}

template <int n>
__device__ uint32_t random16(const RandomPack<n>& pack, int j) {
  return fusedstep::random16(pack.words[j / kRandomGroup], j % kRandomGroup);
}

// Rounds to bfloat16 stochastically.
template <typename T, int n>
__device__ void round_pack([[maybe_unused]] const T (&from)[n],
                           [[maybe_unused]] const RandomPack<n>& random, [[maybe_unused]] Raw& to) {
  if constexpr (sizeof(T) == sizeof(float)) {
    BFloat16 rounded[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      rounded[j] = round_to_bfloat16_stochastically(from[j], random16(random, j));
    }
    memcpy(&to, rounded, sizeof(rounded));
  }
}

// The largest magnitude of a block, a NaN above all; its neighbouring threads hold the packs.
// Magnitudes have the same order as integers, of which a GPU takes a maximum in one instruction.
template <typename T, int n>
__device__ float largest_of_block(const T (&values)[n], int count) {
  constexpr int kThreadsOfBlock = kBlock / n;
  static_assert(kThreadsOfBlock <= kWarp);
  int32_t largest = 0;
  const auto take = [&](int32_t magnitude) { largest = magnitude > largest ? magnitude : largest; };
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j < count) {
      take(bit_cast<int32_t>(static_cast<float>(values[j])) & 0x7fffffff);
    }
  }
#pragma unroll
  for (int other = kThreadsOfBlock / 2; other > 0; other /= 2) {
    take(__shfl_xor_sync(kEveryLane, largest, other));
  }
  return bit_cast<float>(largest);
}

template <typename Code, typename T, int n>
__device__ void decode_pack(const Raw& from, float scale, T (&to)[n]) {
  Code codes[n];
  memcpy(codes, &from, sizeof(codes));
#pragma unroll
  for (int j = 0; j < n; ++j) {
    to[j] = Codes<Code>::decode(codes[j], scale);
  }
}

// By all threads of a warp together; returns the block's scale.
template <typename Code, typename T, int n>
__device__ float encode_pack([[maybe_unused]] const T (&from)[n], [[maybe_unused]] int count,
                             [[maybe_unused]] const RandomPack<n>& random,
                             [[maybe_unused]] Raw& to) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const float largest = largest_of_block(from, count);
    const float scale = block_scale(largest);
    Code codes[n] = {};
    if (has_codes(largest)) {
      const float inverse = Codes<Code>::kTop / scale;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        codes[j] = Codes<Code>::encode(from[j], inverse, random16(random, j));
      }
    }
    memcpy(&to, codes, sizeof(codes));
    return scale;
  }
  return 0;
}

}  // namespace fusedstep::cuda
