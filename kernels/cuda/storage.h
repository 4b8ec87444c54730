// How one tensor's parameter and states are stored, seen from a rule's loop on the GPU: packs in
// the compute type.
#pragma once

#include "kernels/common/average.h"
#include "kernels/common/rule.h"
#include "kernels/common/table.h"
#include "kernels/cuda/vector.h"

namespace fusedstep::cuda {

// One array of a chunk, from the chunk's first element.
template <typename T>
struct ChunkArray {
  static constexpr int n = kPack<T>;
  char* data;
  Dtype dtype;
  bool aligned;  // for packs

  __device__ ChunkArray() : data(nullptr) {}
  __device__ ChunkArray(void* array, Dtype dtype, int64_t begin)
      : data(static_cast<char*>(array) + begin * width_of(dtype)),
        dtype(dtype),
        aligned(aligned_for(data, width_of(dtype) * n)) {}

  static __device__ int width_of(Dtype dtype) {
    return dtype == Dtype::kFloat64                          ? 8
           : dtype == Dtype::kFloat32                        ? 4
           : dtype == Dtype::kInt8 || dtype == Dtype::kUInt8 ? 1
                                                             : 2;
  }

  // Elements [at, at + count) of the chunk, as they are. float64 for a float32 computation is rare
  // and does not fit: it is narrowed as it is read, and `widen` is told so.
  __device__ void load(int at, int count, Raw& raw) const {
    const char* const from = data + at * width_of(dtype);
    const bool whole = aligned && count == n;
    switch (width_of(dtype)) {
      case 8:
        if constexpr (sizeof(T) == 8) {
          load_pack<double, n>(from, whole, count, raw);
        } else {
          T narrowed[n];
#pragma unroll
          for (int j = 0; j < n; ++j) {
            narrowed[j] = j < count ? static_cast<T>(reinterpret_cast<const double*>(from)[j]) : 0;
          }
          memcpy(&raw, narrowed, sizeof(narrowed));
        }
        break;
      case 4:
        load_pack<float, n>(from, whole, count, raw);
        break;
      case 2:
        load_pack<uint16_t, n>(from, whole, count, raw);
        break;
      default:
        load_pack<uint8_t, n>(from, whole, count, raw);
    }
  }

  __device__ void widen(const Raw& raw, T (&to)[n]) const {
    switch (dtype) {
      case Dtype::kFloat64:
        return widen_pack<T>(raw, to);
      case Dtype::kBFloat16:
        return widen_pack<BFloat16>(raw, to);
      case Dtype::kFloat16:
        return widen_pack<Half>(raw, to);
      default:
        return widen_pack<float>(raw, to);
    }
  }

  __device__ void store(const T (&from)[n], int at, int count) const {
    char* const to = data + at * width_of(dtype);
    const bool whole = aligned && count == n;
    Raw raw;
    switch (dtype) {
      case Dtype::kFloat64:  // only where that is the compute type
        narrow_pack<T>(from, raw);
        return store_pack<T, n>(raw, whole, count, to);
      case Dtype::kBFloat16:
        narrow_pack<BFloat16>(from, raw);
        return store_pack<BFloat16, n>(raw, whole, count, to);
      case Dtype::kFloat16:
        narrow_pack<Half>(from, raw);
        return store_pack<Half, n>(raw, whole, count, to);
      default:
        narrow_pack<float>(from, raw);
        return store_pack<float, n>(raw, whole, count, to);
    }
  }
};

}  // namespace fusedstep::cuda
