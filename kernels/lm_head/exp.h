// exp of x <= 0, from + - * and bits only: the same bits on every device, and a loop over it
// vectorizes.
//
// With n the integer nearest to x / log 2 and r = x - n log 2, exp(x) = 2^n exp(r) and |r| < 0.35,
// where Taylor's series is short (Cody and Waite 1980, "Software Manual for the Elementary
// Functions", chapter 6, which has a quotient of polynomials in its place). log 2 comes in two
// parts, of which n times the first is exact. Off by at most 1.02 units in the last place.
#pragma once

#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep {

template <typename T>
struct Exp;

template <>
struct Exp<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr int kDegree = 7;                 // truncated at r^8 / 8!, below 2^-27
  static constexpr float kShift = 0x1.8p23f + 127;  // the sum's last bits are an integer, biased
  static constexpr float kLog2e = 0x1.715476p0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kLeast = -87.3f;  // whose exp is the least that is normal, just about
  static constexpr float kTiny = 0x1p-126f;
};

template <>
struct Exp<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr int kDegree = 13;  // truncated at r^14 / 14!, below 2^-57
  static constexpr double kShift = 0x1.8p52 + 1023;
  static constexpr double kLog2e = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr double kLeast = -708.39;
  static constexpr double kTiny = 0x1p-1022;
};

constexpr double factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }

// The sum of r^(j - k) / j! for j from k to `degree`.
template <int k, int degree, typename T>
FUSEDSTEP_HD T exp_series(T r) {
  constexpr T kTerm = static_cast<T>(1 / factorial(k));
  if constexpr (k == degree) {
    return kTerm;
  } else {
    return kTerm + r * exp_series<k + 1, degree>(r);
  }
}

// x <= 0, minus infinity or NaN. Results below the normal numbers, which would be a hundred times
// slower to compute with, are 0.
template <typename T>
FUSEDSTEP_HD T exp_or_zero(T x) {
  using E = Exp<T>;
  const T shifted = x * E::kLog2e + E::kShift;
  const T n = shifted - E::kShift;
  const T r = x - n * E::kLn2High - n * E::kLn2Low;
  const T power = bit_cast<T>(bit_cast<typename E::Bits>(shifted) << E::kMantissa);  // 2^n
  const T result = (1 + (r + r * r * exp_series<2, E::kDegree>(r))) * power;
  return x < E::kLeast ? 0 : result;
}

}  // namespace fusedstep
