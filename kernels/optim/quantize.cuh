// Packs of the smaller storage forms (kernels/optim/quantize.h, remainder.h), to the compute type
// and back. They exist for float32 computations alone; for others the functions do nothing.
#pragma once

#include "kernels/common/reduce.h"
#include "kernels/common/vector.cuh"
#include "kernels/common/warp.cuh"
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

template <typename T, int n>
__device__ void join_pack([[maybe_unused]] const Raw& nearest,
                          [[maybe_unused]] const Raw& remainder, [[maybe_unused]] T (&to)[n]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    BFloat16 high[n];
    uint16_t low[n];
    memcpy(high, &nearest, sizeof(high));
    memcpy(low, &remainder, sizeof(low));
#pragma unroll
    for (int j = 0; j < n; ++j) {
      to[j] = join(high[j], low[j]);
    }
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

// Rounds to bfloat16 stochastically, by the random bits of the pack.
template <typename T, int n>
__device__ void round_pack([[maybe_unused]] const T (&from)[n], [[maybe_unused]] const Words& words,
                           [[maybe_unused]] Raw& to) {
  if constexpr (sizeof(T) == sizeof(float)) {
    static_assert(n == kRandomGroup);
    BFloat16 rounded[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      rounded[j] = round_to_bfloat16_stochastically(from[j], random16(words, j));
    }
    memcpy(&to, rounded, sizeof(rounded));
  }
}

// The largest magnitude of a block, a NaN above all; its neighbouring threads hold the packs.
template <typename T, int n>
__device__ float largest_of_block(const T (&values)[n], int count) {
  constexpr int kThreadsOfBlock = kBlock / n;
  static_assert(kThreadsOfBlock <= kWarp);
  float largest = 0;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j < count) {
      largest = accumulate<Norm::kInf>(largest, static_cast<float>(values[j]));
    }
  }
#pragma unroll
  for (int other = kThreadsOfBlock / 2; other > 0; other /= 2) {
    largest = nan_max(largest, __shfl_xor_sync(kEveryLane, largest, other));
  }
  return largest;
}

// Codes of either sign are int8_t, those of what is never negative uint8_t.
template <typename Code, typename T, int n>
__device__ void decode_pack(const Raw& from, float scale, T (&to)[n]) {
  Code codes[n];
  memcpy(codes, &from, sizeof(codes));
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if constexpr (std::is_signed_v<Code>) {
      to[j] = decode_signed(codes[j], scale);
    } else {
      to[j] = decode_unsigned(codes[j], scale);
    }
  }
}

template <typename Code, typename T, int n>
__device__ void encode_pack([[maybe_unused]] const T (&from)[n], [[maybe_unused]] float scale,
                            [[maybe_unused]] const Words& words, [[maybe_unused]] Raw& to) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const float inverse = 1 / scale;
    Code codes[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      if constexpr (std::is_signed_v<Code>) {
        codes[j] = encode_signed(from[j], inverse, random16(words, j));
      } else {
        codes[j] = encode_unsigned(from[j], inverse, random16(words, j));
      }
    }
    memcpy(&to, codes, sizeof(codes));
  }
}

}  // namespace fusedstep::cuda
