// beta^n for a step count n by repeated squaring: only multiplications, so the same bits
// everywhere.
#pragma once

#include <cstdint>

#include "kernels/common/macros.h"

namespace fusedstep {

// pow() differs between C libraries and CUDA in the last bit. The relative error here is below
// n * 2^-53; where n is large enough for that to show, beta^n has long vanished beside 1.
FUSEDSTEP_HD double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) {
      result *= base;
    }
    base *= base;
  }
  return result;
}

}  // namespace fusedstep
