// Reads and writes of a few neighbouring elements at once, 16 bytes an access where the type
// allows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/dtypes.h"

namespace fusedstep::cuda {

constexpr int kAccess = 16;  // bytes of the widest load and store

template <typename Storage, int n>
struct alignas(sizeof(Storage) * n < kAccess ? sizeof(Storage) * n : kAccess) Pack {
  Storage values[n];
};

template <typename Storage, int n>
FUSEDSTEP_HD bool aligned_for(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Pack<Storage, n>) == 0;
}

// Addresses come out of the tensor table, so nvcc cannot see that they lie in global memory and
// would choose the slower instructions that ask so at run time.
FUSEDSTEP_HD void assume_global([[maybe_unused]] const void* p) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(p));
#endif
}

template <int n, typename T, typename Storage>
FUSEDSTEP_HD void load_pack(const Storage* from, T (&to)[n]) {
  assume_global(from);
  const auto pack = *reinterpret_cast<const Pack<Storage, n>*>(from);
#pragma unroll
  for (int j = 0; j < n; ++j) {
    to[j] = load_as<T>(pack.values[j]);
  }
}

template <typename Pack>
FUSEDSTEP_HD void store(const Pack& pack, Pack* to) {
#if defined(__CUDA_ARCH__)
  // nvcc may take an assignment apart into stores of single elements, these it may not.
  constexpr int kWidth = alignof(Pack);
  using Word = std::conditional_t<
      kWidth == 16, uint4,
      std::conditional_t<kWidth == 8, uint2, std::conditional_t<kWidth == 4, unsigned, uint16_t>>>;
  Word words[sizeof(Pack) / kWidth];
  memcpy(words, &pack, sizeof(Pack));
#pragma unroll
  for (int w = 0; w < static_cast<int>(sizeof(Pack)) / kWidth; ++w) {
    __stwb(reinterpret_cast<Word*>(to) + w, words[w]);
  }
#else
  *to = pack;
#endif
}

template <int n, typename T, typename Storage>
FUSEDSTEP_HD void store_pack(const T (&from)[n], Storage* to) {
  Pack<Storage, n> pack;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    pack.values[j] = store_as<Storage>(from[j]);
  }
  store(pack, reinterpret_cast<Pack<Storage, n>*>(to));
}

}  // namespace fusedstep::cuda
