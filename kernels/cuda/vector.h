// Reads and writes of a few neighbouring elements at once, 16 bytes an access where the type
// allows.
#pragma once

#include <cstdint>

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
  if constexpr (sizeof(Pack) >= kAccess) {
    // Said in PTX: nvcc may take an assignment apart into stores of single elements.
    uint4 words[sizeof(Pack) / kAccess];
    memcpy(words, &pack, sizeof(Pack));
#pragma unroll
    for (int w = 0; w < static_cast<int>(sizeof(Pack)) / kAccess; ++w) {
      asm volatile(
          "st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(reinterpret_cast<uint4*>(to) + w),
          "r"(words[w].x), "r"(words[w].y), "r"(words[w].z), "r"(words[w].w)
          : "memory");
    }
    return;
  }
#endif
  *to = pack;
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
