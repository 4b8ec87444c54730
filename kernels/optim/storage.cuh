// How one chunk's parameter, gradient and states are stored, seen from a rule's loop on the GPU:
// packs in the compute type.
#pragma once

#include "kernels/common/vector.cuh"
#include "kernels/optim/average.h"
#include "kernels/optim/quantize.cuh"
#include "kernels/optim/rule.h"
#include "kernels/optim/table.h"

namespace fusedstep::cuda {

// One array of a chunk, from the chunk's first element. `uniform`: all arrays are of type T.
template <typename T, bool uniform>
struct ChunkArray {
  static constexpr int n = kPack<T, uniform>;
  static constexpr Dtype kComputed = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
  char* data;
  bool aligned;  // for packs
  Dtype stored;
  uint8_t width;  // bytes of an element

  ChunkArray() = default;
  __device__ ChunkArray(void* array, Dtype dtype, int64_t begin)
      : data(static_cast<char*>(array)),
        stored(dtype),
        width(static_cast<uint8_t>(width_of(this->dtype()))) {
    data += begin * width;
    aligned = aligned_for(data, width * n);
  }

  __device__ Dtype dtype() const { return uniform ? kComputed : stored; }
  __device__ bool exists() const { return stored != Dtype::kNone; }

  // Elements [at, at + count) of the chunk, as they are.
  __device__ void load(int at, int count, Raw& raw) const {
    const char* const from = data + at * (uniform ? sizeof(T) : width);
    const bool whole = aligned && count == n;
    if constexpr (uniform) {
      load_pack<T, n>(from, whole, count, raw);
    } else {
      switch (width) {
        case 8:
          if constexpr (sizeof(T) == 8) {
            return load_pack<double, n>(from, whole, count, raw);
          } else {
            return load_narrowed<n>(reinterpret_cast<const double*>(from), count, raw);
          }
        case 4:
          return load_pack<float, n>(from, whole, count, raw);
        case 2:
          return load_pack<uint16_t, n>(from, whole, count, raw);
        default:
          return load_pack<uint8_t, n>(from, whole, count, raw);
      }
    }
  }

  __device__ void store(const Raw& raw, int at, int count) const {
    char* const to = data + at * (uniform ? sizeof(T) : width);
    const bool whole = aligned && count == n;
    if constexpr (uniform) {
      store_pack<T, n>(raw, whole, count, to);
    } else {
      switch (width) {
        case 8:
          if constexpr (sizeof(T) == 8) {
            store_pack<double, n>(raw, whole, count, to);
          }
          return;
        case 4:
          return store_pack<float, n>(raw, whole, count, to);
        case 2:
          return store_pack<uint16_t, n>(raw, whole, count, to);
        default:
          return store_pack<uint8_t, n>(raw, whole, count, to);
      }
    }
  }

  // What was loaded as T, and T as it is to be stored.
  __device__ void widen(const Raw& raw, T (&to)[n]) const {
    switch (dtype()) {
      case Dtype::kFloat64:
        return widen_pack<T>(raw, to);  // load_narrowed made it T
      case Dtype::kBFloat16:
        return widen_pack<BFloat16>(raw, to);
      case Dtype::kFloat16:
        return widen_pack<Half>(raw, to);
      default:
        return widen_pack<float>(raw, to);
    }
  }

  __device__ void narrow(const T (&from)[n], Raw& raw) const {
    switch (dtype()) {
      case Dtype::kFloat64:
        return narrow_pack<T>(from, raw);
      case Dtype::kBFloat16:
        return narrow_pack<BFloat16>(from, raw);
      case Dtype::kFloat16:
        return narrow_pack<Half>(from, raw);
      default:
        return narrow_pack<float>(from, raw);
    }
  }
};

// A tensor's parameter with its master and its average.
template <typename T, bool uniform>
struct ChunkParam {
  static constexpr int n = kPack<T, uniform>;
  ChunkArray<T, uniform> param, master, average;
  bool stochastic;
  Average<T> weights;

  ChunkParam() = default;
  __device__ ChunkParam(const Row& row, const GroupHead& group, int64_t begin)
      : param(row.param, row.param_dtype, begin),
        average(row.arrays[kAverage], row.dtypes[kAverage], begin),
        stochastic(false),
        weights(group.ema_decay) {
    if constexpr (!uniform) {
      master = {row.arrays[kMaster], row.dtypes[kMaster], begin};
      stochastic =
          group.stochastic_rounding != 0 && row.param_dtype == Dtype::kBFloat16 && !master.exists();
    }
  }

  // Whether it, or its master, is stored with fewer bits, rounded stochastically.
  __device__ bool rounds() const {
    return !uniform && (stochastic || master.stored == Dtype::kUInt8);
  }

  __device__ void load(int at, int count, Raw& raw, Raw& raw_master) const {
    param.load(at, count, raw);
    if (!uniform && master.exists()) {
      master.load(at, count, raw_master);
    }
  }

  __device__ void widen(const Raw& raw, const Raw& raw_master, T (&to)[n]) const {
    if (!uniform && master.stored == Dtype::kInt16) {
      join_pack<uint16_t>(raw, raw_master, to);
    } else if (!uniform && master.stored == Dtype::kUInt8) {
      join_pack<uint8_t>(raw, raw_master, to);
    } else if (!uniform && master.exists()) {
      master.widen(raw_master, to);
      take_over_pack(raw, to);
    } else {
      param.widen(raw, to);
    }
  }

  // `random()`: the random bits of the pack.
  template <typename Random>
  __device__ void store(T (&p)[n], int at, int count, Random&& random) const {
    Raw raw;
    if constexpr (uniform) {
      param.narrow(p, raw);
    } else if (master.exists()) {
      Raw raw_master;
      if (master.stored == Dtype::kInt16) {
        split_pack(p, raw, raw_master);
      } else if (master.stored == Dtype::kUInt8) {
        correct_pack(p, random(), raw, raw_master);
      } else {
        param.narrow(p, raw);
        master.narrow(p, raw_master);
      }
      master.store(raw_master, at, count);
    } else if (stochastic) {
      round_pack(p, random(), raw);
    } else {
      param.narrow(p, raw);
    }
    param.store(raw, at, count);
    if (!uniform && average.exists() && !master.exists()) {
      param.widen(raw, p);  // as it was rounded
    }
  }

  // After `store`, if the parameter was updated.
  __device__ void advance_average(const T (&p)[n], int at, int count) const {
    if (!average.exists()) {
      return;
    }
    Raw raw;
    T mean[n];
    average.load(at, count, raw);
    average.widen(raw, mean);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      mean[j] = weights.next(mean[j], p[j]);
    }
    average.narrow(mean, raw);
    average.store(raw, at, count);
  }
};

// One of the rule's states with, if it has 8 bits, the scales of its blocks.
template <typename T, bool uniform>
struct ChunkState {
  static constexpr int n = kPack<T, uniform>;
  ChunkArray<T, uniform> state;
  float* scales;

  ChunkState() = default;
  __device__ ChunkState(const Row& row, int k, int64_t begin)
      : state(row.arrays[kState + k], row.dtypes[kState + k], begin),
        scales(static_cast<float*>(row.arrays[kScale + k])) {
    if (scales != nullptr) {
      scales += begin / kBlock;
    }
  }

  __device__ void load(int at, int count, Raw& raw, float& scale) const {
    state.load(at, count, raw);
    scale = !uniform && scales != nullptr && count > 0 ? *scale_of(at) : 1;
  }

  __device__ void widen(const Raw& raw, float scale, T (&to)[n]) const {
    if (!uniform && state.stored == Dtype::kInt8) {
      decode_pack<int8_t>(raw, scale, to);
    } else if (!uniform && state.stored == Dtype::kUInt8) {
      decode_pack<uint8_t>(raw, scale, to);
    } else {
      state.widen(raw, to);
    }
  }

  // Whether it is stored with fewer bits, rounded stochastically.
  __device__ bool rounds() const { return !uniform && state.stored != state.kComputed; }

  // By all threads of a warp together; `random`: the random bits of the pack.
  __device__ void store(const T (&values)[n], int at, int count,
                        const RandomPack<n>& random) const {
    Raw raw;
    if constexpr (uniform) {
      state.narrow(values, raw);
    } else if (state.stored == Dtype::kBFloat16) {
      round_pack(values, random, raw);
    } else if (scales != nullptr) {
      const float scale = state.stored == Dtype::kInt8
                              ? encode_pack<int8_t>(values, count, random, raw)
                              : encode_pack<uint8_t>(values, count, random, raw);
      if (at % kBlock == 0 && count > 0) {
        *scale_of(at) = scale;
      }
    } else {
      state.narrow(values, raw);
    }
    state.store(raw, at, count);
  }

 private:
  // Of the block that element `at` of the chunk belongs to.
  __device__ float* scale_of(int at) const {
    float* const scale = scales + at / kBlock;
    assume_global(scale);
    return scale;
  }
};

}  // namespace fusedstep::cuda
