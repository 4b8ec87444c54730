// Moves a short run of elements between storage and compute type, so that a rule's loop exists once
// per compute type.
#pragma once

#include "kernels/common/dtypes.h"

namespace fusedstep::cpu {

// Elements converted at a time. So few that the loads of the next tile are under way while this one
// is converted; with 1024 a step from memory takes a quarter longer.
constexpr int kTile = 256;

template <typename T, typename Storage>
FUSEDSTEP_CLONES void widen_tile(const Storage* from, T* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = load_as<T>(from[i]);
  }
}

template <typename T, typename Storage>
FUSEDSTEP_CLONES void narrow_tile(const T* from, Storage* to, int n) {
  for (int i = 0; i < n; ++i) {
    to[i] = store_as<Storage>(from[i]);
  }
}

// Elements [begin, begin + n) as T: the data themselves where they are stored so, else a copy in
// `buffer`.
template <typename T>
T* load_tile(void* data, Dtype dtype, int64_t begin, int n, T* buffer) {
  if (dtype == kDtypeOf<T>) {
    return static_cast<T*>(data) + begin;
  }
  with_storage(dtype, [&](auto storage) {
    widen_tile(static_cast<const decltype(storage)*>(data) + begin, buffer, n);
  });
  return buffer;
}

// Puts a tile back; nothing to do where load_tile gave the data themselves.
template <typename T>
void store_tile(const T* tile, void* data, Dtype dtype, int64_t begin, int n) {
  if (dtype != kDtypeOf<T>) {
    with_storage(dtype, [&](auto storage) {
      narrow_tile(tile, static_cast<decltype(storage)*>(data) + begin, n);
    });
  }
}

}  // namespace fusedstep::cpu
