// Reads and writes of a few neighbouring elements at once, 16 bytes an access where the type allows.
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

template <int n, typename T, typename Storage>
FUSEDSTEP_HD void load_pack(const Storage* from, T (&to)[n]) {
  const auto pack = *reinterpret_cast<const Pack<Storage, n>*>(from);
#pragma unroll
  for (int j = 0; j < n; ++j) {
    to[j] = load_as<T>(pack.values[j]);
  }
}

template <int n, typename T, typename Storage>
FUSEDSTEP_HD void store_pack(const T (&from)[n], Storage* to) {
  Pack<Storage, n> pack;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    pack.values[j] = store_as<Storage>(from[j]);
  }
  *reinterpret_cast<Pack<Storage, n>*>(to) = pack;
}

}  // namespace fusedstep::cuda
