// Random bits as a pure function of where they are used: Philox4x32-10 of (seed, step, array,
// element), so the same on every device and for any number of threads.
//
// Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3
// (https://doi.org/10.1145/2063384.2063405).
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/common/macros.h"

namespace fusedstep {

constexpr int kRandomGroup = 8;  // neighbouring elements that share a call: 16 bits for each

struct Words {
  uint32_t a, b, c, d;
};

FUSEDSTEP_HD Words philox_round(Words x, uint32_t key0, uint32_t key1) {
  const uint64_t product_a = static_cast<uint64_t>(x.a) * 0xd2511f53u;
  const uint64_t product_c = static_cast<uint64_t>(x.c) * 0xcd9e8d57u;
  return {static_cast<uint32_t>(product_c >> 32) ^ x.b ^ key0, static_cast<uint32_t>(product_c),
          static_cast<uint32_t>(product_a >> 32) ^ x.d ^ key1, static_cast<uint32_t>(product_a)};
}

constexpr int kRounds = 10;
constexpr uint32_t kNextKey0 = 0x9e3779b9u;  // the golden ratio
constexpr uint32_t kNextKey1 = 0xbb67ae85u;  // sqrt(3) - 1

// The generator itself: for every key a bijection of the counter.
FUSEDSTEP_HD Words philox(Words counter, uint32_t key0, uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (uint32_t round = 0; round < kRounds; ++round) {
    counter = philox_round(counter, key0 + round * kNextKey0, key1 + round * kNextKey1);
  }
  return counter;
}

// The random numbers of one array in one step.
struct RandomStream {
  uint64_t seed;
  uint32_t array;  // random_array() below
  uint32_t step;   // counts this update: 1 at the first
};

// An array's number: its tensor's position in the optimizer (below 2^29), and 0 for the parameter
// or 1 + k for its states k and k + 1, k even (below 8).
FUSEDSTEP_HD uint32_t random_array(uint32_t tensor, uint32_t slot) { return tensor << 3 | slot; }

FUSEDSTEP_HD Words random_counter(const RandomStream& stream, uint64_t group) {
  return {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), stream.array,
          stream.step};
}

// For elements [8 group, 8 group + 8) of the array.
FUSEDSTEP_HD Words random_words(const RandomStream& stream, uint64_t group) {
  return philox(random_counter(stream, group), static_cast<uint32_t>(stream.seed),
                static_cast<uint32_t>(stream.seed >> 32));
}

// The 16 bits of element j of the group; what is above them is 0.
FUSEDSTEP_HD uint32_t random16(const Words& words, int j) {
  const uint32_t low = j & 2 ? words.b : words.a, high = j & 2 ? words.d : words.c;
  return (j & 4 ? high : low) >> (j % 2 * 16) & 0xffffu;
}

// Two states share a call: the odd one has the bits of the even one with the bytes of each half
// exchanged. The chance that both round up is the product of both chances, to about 2^-7.
FUSEDSTEP_HD uint32_t exchange_bytes(uint32_t halves) {
  return (halves << 8 & 0xff00ff00u) | (halves >> 8 & 0x00ff00ffu);
}

FUSEDSTEP_HD Words exchange_bytes(const Words& words) {
  return {exchange_bytes(words.a), exchange_bytes(words.b), exchange_bytes(words.c),
          exchange_bytes(words.d)};
}

// The 16 bits of `groups` groups from first_group on, on a CPU: random16 of random_words, side by
// side in lanes, as compilers do not vectorise across the rounds by themselves.
inline __attribute__((always_inline)) void random_tile(const RandomStream& stream,
                                                       uint64_t first_group, int groups,
                                                       uint16_t* bits) {
  static_assert(std::endian::native == std::endian::little, "a word's low half comes first");
  using Aliasing = uint32_t __attribute__((may_alias));
  constexpr int kAtOnce = 64;
  const RandomStream s = stream;  // a local copy: the stores below cannot change it
  for (int begin = 0; begin < groups; begin += kAtOnce) {
    alignas(64) uint32_t a[kAtOnce], b[kAtOnce], c[kAtOnce], d[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) {
      const Words x = random_counter(s, first_group + begin + i);
      a[i] = x.a, b[i] = x.b, c[i] = x.c, d[i] = x.d;
    }
    auto key0 = static_cast<uint32_t>(s.seed), key1 = static_cast<uint32_t>(s.seed >> 32);
    for (int round = 0; round < kRounds; ++round, key0 += kNextKey0, key1 += kNextKey1) {
      for (int i = 0; i < kAtOnce; ++i) {
        const Words x = philox_round({a[i], b[i], c[i], d[i]}, key0, key1);
        a[i] = x.a, b[i] = x.b, c[i] = x.c, d[i] = x.d;
      }
    }
    auto* to = reinterpret_cast<Aliasing*>(bits + begin * kRandomGroup);
    const int n = groups - begin < kAtOnce ? groups - begin : kAtOnce;
    FUSEDSTEP_IVDEP
    for (int i = 0; i < n; ++i) {
      to[4 * i] = a[i];
      to[4 * i + 1] = b[i];
      to[4 * i + 2] = c[i];
      to[4 * i + 3] = d[i];
    }
  }
}

}  // namespace fusedstep
