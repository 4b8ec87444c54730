// NaN and infinity in comparisons, on every device.
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
