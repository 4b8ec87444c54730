// log(1 + x) from + - * / and bits only: the same bits on every device.
#pragma once

#include <cstdint>

#include "kernels/lm_head/exp.h"

namespace fusedstep {

// 1 / k + z / (k + 2) + z^2 / (k + 4) ... up to 1 / 23.
template <int k>
FUSEDSTEP_HD double atanh_series(double z) {
  if constexpr (k == 23) {
    return 1.0 / k;
  } else {
    return 1.0 / k + z * atanh_series<k + 2>(z);
  }
}

// Of a finite x >= 0, or NaN. 1 + x = 2^n m with m between sqrt(1/2) and sqrt(2), and
// log m = 2 atanh((m - 1) / (m + 1)), whose series truncated at 23 is off by less than 2^-60. What
// rounding took from 1 + x comes back as its first-order effect, so that a small x keeps its
// digits. Off by at most 2.4 units in the last place.
FUSEDSTEP_HD double log1p_of(double x) {
  using E = Exp<double>;
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu;  // the bits of sqrt(1/2)
  constexpr uint64_t kMantissa = (uint64_t{1} << 52) - 1;
  const double sum = 1 + x;
  const double lost = (x - (sum - 1)) / sum;
  const uint64_t above = bit_cast<uint64_t>(sum) - kRootHalf;
  const auto n = static_cast<double>(static_cast<int64_t>(above >> 52));
  const double f = bit_cast<double>((above & kMantissa) + kRootHalf) - 1;
  const double s = f / (2 + f);
  const double z = s * s;
  const double log_m = 2 * s + 2 * s * z * atanh_series<3>(z);
  return n * E::kLn2High + (log_m + (n * E::kLn2Low + lost));
}

}  // namespace fusedstep
