// What reductions share: comparisons that keep NaN, and lanes folded by halves.
#pragma once

#include "kernels/common/macros.h"

namespace fusedstep {

// A NaN on either side wins, which fmax would drop.
template <typename T>
FUSEDSTEP_HD T nan_max(T a, T b) {
  return a >= b ? a : (a != a ? a : b);
}

FUSEDSTEP_HD bool is_finite(double x) { return x - x == 0; }

}  // namespace fusedstep

namespace fusedstep::cpu {

// Lane l takes lane l + half, until lane 0 has them all. Every half is a constant, so that the
// compiler keeps the lanes in registers.
template <int count, typename T, typename Combine>
FUSEDSTEP_HD T fold_by_halves(T* lanes, Combine combine) {
  if constexpr (count > 1) {
    constexpr int half = count / 2;
    for (int l = 0; l < half; ++l) {
      lanes[l] = combine(lanes[l], lanes[l + half]);
    }
    return fold_by_halves<half>(lanes, combine);
  } else {
    return lanes[0];
  }
}

// What to fold a sum with.
struct Add {
  template <typename T>
  FUSEDSTEP_HD T operator()(T a, T b) const {
    return a + b;
  }
};

}  // namespace fusedstep::cpu
