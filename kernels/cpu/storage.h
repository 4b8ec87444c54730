// How one tensor's parameter and states are stored, seen from a rule's loop: tiles in the compute
// type.
#pragma once

#include "kernels/common/average.h"
#include "kernels/common/rule.h"
#include "kernels/common/table.h"
#include "kernels/cpu/tile.h"

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
  const Row& row;
  const GroupHead& group;
  const Update& update;

  // Whether every array can be computed on where it lies, so that no tile is needed.
  template <int kStates>
  bool direct() const {
    bool direct = stored_as_computed<T>(row.param_dtype) && stored_as_computed<T>(row.grad_dtype);
    for (int k = 0; k < kStates; ++k) {
      direct = direct && stored_as_computed<T>(row.dtypes[kState + k]);
    }
    return direct;
  }

  T* load_param(int64_t at, int n, T* buffer) const {
    return load_tile<T>(row.param, row.param_dtype, at, n, buffer);
  }

  // `p`: what load_param gave, updated.
  void store_param(T* p, int64_t at, int n) const {
    store_tile<T>(p, row.param, row.param_dtype, at, n);
    if (T* const average = static_cast<T*>(row.arrays[kAverage])) {
      const T* stored = load_tile<T>(row.param, row.param_dtype, at, n, p);  // as it was rounded
      average_tile(average + at, stored, n, Average<T>(group.average_decay));
    }
  }

  T* load_state(int k, int64_t at, int n, T* buffer) const {
    return load_tile<T>(row.arrays[kState + k], row.dtypes[kState + k], at, n, buffer);
  }

  void store_state(const T* state, int k, int64_t at, int n) const {
    store_tile<T>(state, row.arrays[kState + k], row.dtypes[kState + k], at, n);
  }
};

}  // namespace fusedstep::cpu
