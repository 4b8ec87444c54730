// bfloat16 and float16 conversions against their definition: every value, and every place where
// rounding turns.
#include <cmath>
#include <random>

#include "kernels/common/dtypes.h"
#include "tests/simt/check.h"

namespace fusedstep {
namespace {

// A format with `mantissa` stored bits and normal numbers from 2^min_exponent up to below
// 2^(max_exponent + 1).
struct Format {
  int mantissa, min_exponent, max_exponent;
};
constexpr Format kHalf{10, -14, 15};
constexpr Format kBFloat16{7, -126, 127};

double value_of(uint16_t bits, Format format) {
  const int sign = bits >> 15, mantissa = bits & ((1 << format.mantissa) - 1);
  const int exponent = (bits & 0x7fff) >> format.mantissa;
  const int special = 2 * format.max_exponent + 1;
  double value = exponent == special
                     ? (mantissa ? NAN : INFINITY)
                     : std::ldexp(mantissa + (exponent ? 1 << format.mantissa : 0),
                                  std::max(exponent, 1) - format.max_exponent - format.mantissa);
  return sign ? -value : value;
}

// To the nearest multiple of the unit in the last place, ties to the even one.
double nearest(float x, Format format) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int unit = std::max(std::ilogb(x), format.min_exponent) - format.mantissa;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  const bool overflow = std::abs(rounded) >= std::ldexp(1.0, format.max_exponent + 1);
  return overflow ? std::copysign(INFINITY, x) : rounded;
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

template <typename Storage>
void test_format(Format format, Storage (*round)(float)) {
  bool widens = true, returns = true, rounds = true;
  const auto check_rounding = [&](float x) { rounds &= same(widen(round(x)), nearest(x, format)); };
  for (int i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float value = widen(Storage{bits});
    widens &= same(value, value_of(bits, format));
    returns &= round(value).bits == (std::isnan(value) ? 0x7fff : bits);
    // Half-way to the next value away from zero, and the floats on both sides of that.
    const double next = value_of(static_cast<uint16_t>(bits + 1), format);
    const float middle = static_cast<float>((value + next) / 2);
    for (const float x :
         {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 2 * middle)}) {
      check_rounding(x);
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1000000; ++i)
    check_rounding(bit_cast<float>(static_cast<uint32_t>(random())));
  CHECK(widens);
  CHECK(returns);
  CHECK(rounds);
}

}  // namespace
}  // namespace fusedstep

int main() {
  using namespace fusedstep;
  test_format<Half>(kHalf, [](float x) { return round_to_half(x); });
  test_format<BFloat16>(kBFloat16, [](float x) { return round_to_bfloat16(x); });
  return check::summary();
}
