// How one tensor's parameter and states are stored, seen from a rule's loop on the CPU: tiles in
// the compute type.
#pragma once

#include "kernels/optim/average.h"
#include "kernels/optim/quantize_tile.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/table.h"
#include "kernels/optim/tile.h"

namespace fusedstep::cpu {

template <typename T>
FUSEDSTEP_CLONES void average_tile(T* average, const T* param, int n, const Average<T>& weights) {
  const Average<T> w = weights;
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    average[i] = w.next(average[i], param[i]);
  }
}

template <typename T>
struct Storage {
  static constexpr bool kSingle = sizeof(T) == sizeof(float);
  const Row& row;
  const GroupHead& group;
  uint32_t step;  // of this update: a key of the random numbers

  // Whether a loop can take the arrays where they lie: parameter and gradient as Elements, states
  // as T. Where Elements are not T, nothing else may be asked of the parameter.
  template <int kStates, typename Element>
  bool in_place() const {
    constexpr bool kPlain = std::is_same_v<Element, T>;
    bool plain = row.param_dtype == kDtypeOf<Element> && row.grad_dtype == kDtypeOf<Element> &&
                 (kPlain || (row.dtypes[kMaster] == Dtype::kNone &&
                             row.arrays[kAverage] == nullptr && !rounds_stochastically()));
    for (int k = 0; k < kStates; ++k) {
      plain = plain && row.dtypes[kState + k] == kDtypeOf<T>;
    }
    return plain;
  }

  // To be updated where it lies, or, if it `rests`, to be read alone.
  T* load_param(int64_t at, int n, T* buffer, bool rests) const {
    if constexpr (kSingle) {
      switch (row.dtypes[kMaster]) {
        case Dtype::kFloat32: {
          T* const master = array<T>(row.arrays[kMaster], at);
          T* const to = rests ? buffer : master;
          take_over_tile(array<BFloat16>(row.param, at), master, to, n);
          return to;
        }
        case Dtype::kInt16:
          join_tile(array<BFloat16>(row.param, at), array<uint16_t>(row.arrays[kMaster], at),
                    buffer, n);
          return buffer;
        case Dtype::kUInt8:
          join_tile(array<BFloat16>(row.param, at), array<uint8_t>(row.arrays[kMaster], at), buffer,
                    n);
          return buffer;
        default:
          break;
      }
    }
    return load_tile<T>(row.param, row.param_dtype, at, n, buffer);
  }

  // `p`: what load_param gave, updated; n elements that begin at `at`.
  void store_param(T* p, int64_t at, int n) const {
    if constexpr (kSingle) {
      if (row.dtypes[kMaster] == Dtype::kInt16) {
        split_tile(p, array<BFloat16>(row.param, at), array<uint16_t>(row.arrays[kMaster], at), n);
      } else if (row.dtypes[kMaster] == Dtype::kUInt8) {
        RandomTile room;
        correct_tile(p, random(0, at, n, room), array<BFloat16>(row.param, at),
                     array<uint8_t>(row.arrays[kMaster], at), n);
      } else if (rounds_stochastically()) {
        RandomTile room;
        round_tile(p, random(0, at, n, room), array<BFloat16>(row.param, at), n);
      } else {
        store_tile<T>(p, row.param, row.param_dtype, at, n);
      }
    } else {
      store_tile<T>(p, row.param, row.param_dtype, at, n);
    }
  }

  // After store_param, if the parameter was updated.
  void advance_average(T* p, int64_t at, int n) const {
    if (row.arrays[kAverage] != nullptr) {
      if (row.dtypes[kMaster] == Dtype::kNone) {
        p = load_tile<T>(row.param, row.param_dtype, at, n, p);  // as it was rounded
      }
      average_tile(array<T>(row.arrays[kAverage], at), p, n, Average<T>(group.ema_decay));
    }
  }

  T* load_state(int k, int64_t at, int n, T* buffer) const {
    void* const state = row.arrays[kState + k];
    if constexpr (kSingle) {
      switch (row.dtypes[kState + k]) {
        case Dtype::kInt8:
          decode_tile(array<int8_t>(state, at), scales(k, at), buffer, n);
          return buffer;
        case Dtype::kUInt8:
          decode_tile(array<uint8_t>(state, at), scales(k, at), buffer, n);
          return buffer;
        default:
          break;
      }
    }
    return load_tile<T>(state, row.dtypes[kState + k], at, n, buffer);
  }

  template <int kStates>
  void store_states(T* const* states, int64_t at, int n) const {
    RandomTile room;
    uint16_t* bits = nullptr;
    const bool draws = kSingle && rounds_states<kStates>();
    for (int k = 0; k < kStates; ++k) {
      if (draws && k % 2 == 0) {
        bits = random(1 + k, at, n, room);
      } else if (draws) {
        exchange_tile(bits, n);
      }
      store_state(states[k], bits, k, at, n);
    }
  }

 private:
  template <typename Element>
  static Element* array(void* data, int64_t at) {
    return static_cast<Element*>(data) + at;
  }

  float* scales(int k, int64_t at) const {
    return array<float>(row.arrays[kScale + k], at / kBlock);
  }

  void store_state(const T* values, [[maybe_unused]] const uint16_t* bits, int k, int64_t at,
                   int n) const {
    void* const state = row.arrays[kState + k];
    if constexpr (kSingle) {
      switch (row.dtypes[kState + k]) {
        case Dtype::kBFloat16:
          return round_tile(values, bits, array<BFloat16>(state, at), n);
        case Dtype::kInt8:
          return encode_tile(values, bits, array<int8_t>(state, at), scales(k, at), n);
        case Dtype::kUInt8:
          return encode_tile(values, bits, array<uint8_t>(state, at), scales(k, at), n);
        default:
          break;
      }
    }
    store_tile<T>(values, state, row.dtypes[kState + k], at, n);
  }

  template <int kStates>
  bool rounds_states() const {
    bool rounds = false;
    for (int k = 0; k < kStates; ++k) {
      rounds = rounds || row.dtypes[kState + k] != kDtypeOf<T>;
    }
    return rounds;
  }

  bool rounds_stochastically() const {
    return group.stochastic_rounding != 0 && row.param_dtype == Dtype::kBFloat16 &&
           row.dtypes[kMaster] == Dtype::kNone;
  }

  // The random bits of a tile. `slot`: 0 for the parameter, 1 + k for the states k and k + 1.
  uint16_t* random(uint32_t slot, int64_t at, int n, RandomTile& room) const {
    const uint32_t array = random_array(static_cast<uint32_t>(row.position), slot);
    return fill_random({group.seed, array, step}, row.first_element + at, n, room);
  }
};

}  // namespace fusedstep::cpu
