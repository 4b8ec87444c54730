// Random bits as a pure function of where they are used, (seed, step, array, element), so the same
// on every device and for any number of threads.
//
// A counter-based generator in 32-bit integers, which every vector unit and GPU multiplies: a
// strong hash makes a 64-bit key of (seed, step, array) once, a cheap one makes a word for each two
// elements of key and counter. It passes the tests of tests/optim/test_random.py; Philox, which
// passes harder ones, takes five times as long on a CPU.
//
// On such generators: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1,
// 2, 3" (https://doi.org/10.1145/2063384.2063405).
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/common/macros.h"

namespace fusedstep {

constexpr int kRandomGroup = 2;  // neighbouring elements that share a word: 16 bits for each

// The random numbers of one array in one step.
struct RandomStream {
  uint64_t seed;
  uint32_t array;  // random_array() below
  uint32_t step;   // counts this update: 1 at the first
};

// An array's number: its tensor's position in the optimizer (below 2^29), and 0 for the parameter
// or 1 + k for its states k and k + 1, k even (below 8).
FUSEDSTEP_HD uint32_t random_array(uint32_t tensor, uint32_t slot) { return tensor << 3 | slot; }

// A bijection of 64 bits in which every bit depends on every other: Steele, Lea and Flood 2014,
// "Fast splittable pseudorandom number generators" (https://doi.org/10.1145/2660193.2660195).
FUSEDSTEP_HD uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// What the words of a window have in common.
struct RandomKey {
  uint32_t start, twist;
};

constexpr int64_t kRandomWindow = int64_t{kRandomGroup} << 32;  // elements

FUSEDSTEP_HD RandomKey random_key(const RandomStream& stream, uint64_t element) {
  const uint64_t use = static_cast<uint64_t>(stream.array) << 32 | stream.step;
  const uint64_t window = element / kRandomWindow;
  const uint64_t key = mix64(mix64(mix64(stream.seed) ^ use) + window);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

// The word of the elements 2 group and 2 group + 1, of whose number the key holds the rest.
// Counting by the golden ratio spreads neighbours over all 32 bits: without it two rounds of
// multiplication are too few.
FUSEDSTEP_HD uint32_t random_word(const RandomKey& key, uint32_t group) {
  uint32_t x = group * 0x9e3779b9u + key.start;
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15 ^ key.twist) * 0x846ca68bu;
  return x ^ x >> 16;
}

// The 16 bits of element j of a group.
FUSEDSTEP_HD uint32_t random16(uint32_t word, int j) { return word >> 16 * j & 0xffffu; }

// Two states share a word: the odd one has the bits of the even one with the bytes of each half
// exchanged. The chance that both round up is the product of both chances, to about 2^-7.
FUSEDSTEP_HD uint32_t exchange_bytes(uint32_t halves) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(halves, 0, 0x2301);
#else
  return (halves << 8 & 0xff00ff00u) | (halves >> 8 & 0x00ff00ffu);
#endif
}

}  // namespace fusedstep
