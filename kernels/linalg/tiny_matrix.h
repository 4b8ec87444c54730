// Matrices of at most 32 rows and columns in fast memory, and who works on them: a group of lanes
// on one matrix (CUDA), or one thread on one matrix or on several at once, an element of each in
// every number (CPU). What is written in these terms is one formula with the same bits for all.
//
// clang-format off
//   Real            double, or several
//   team            for (int j = team.first(); j < n; j += team.step()) shares out j; after
//                   team.sync() all see what was written. Numbers outside such loops are the same
//                   on every lane. team.any(mask) is one answer for all who run together, so that
//                   they branch together.
//   a sum of n      n rounded up to a multiple of four, with zeros; four sums, of every fourth
//                   product each, in order; then (first + second) + (third + fourth)
// clang-format on
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/dtypes.h"

namespace fusedstep::tiny {

constexpr int kLargest = 32;
constexpr double kUnit = 0x1p-53;  // the unit roundoff of float64, in which all is computed

template <typename Real>
using Mask = decltype(Real{} < Real{});
template <typename Real>
using Index = std::conditional_t<std::is_same_v<Real, double>, int64_t, Mask<Real>>;
template <typename Real>  // of an element of a matrix in the caller's memory
using Place = std::conditional_t<std::is_same_v<Real, double>, int, Mask<Real>>;

template <typename Many, typename One>
FUSEDSTEP_HD Many filled(One x) {
  return Many{} + x;
}

// How many there are in one.
template <typename Real>
constexpr int kNumbers = sizeof(Real) / sizeof(double);

template <typename Real>
FUSEDSTEP_HD Real square_root(Real x) {
  if constexpr (kNumbers<Real> == 1) {
    return std::sqrt(x);
  } else {
    for (int w = 0; w < kNumbers<Real>; ++w) {
      x[w] = std::sqrt(x[w]);
    }
    return x;
  }
}

// Between numbers and small integers.
template <typename To, typename From>
FUSEDSTEP_HD To converted(From from) {
  if constexpr (kNumbers<From> == 1) {
    return static_cast<To>(from);
  } else {
    To to;
    for (int w = 0; w < kNumbers<From>; ++w) {
      to[w] = from[w];
    }
    return to;
  }
}

template <typename Real>
FUSEDSTEP_HD Real magnitude(Real x) {
  return x < filled<Real>(0.0) ? -x : x;
}

template <typename Real>
FUSEDSTEP_HD Real larger(Real a, Real b) {
  return a > b ? a : b;
}

// 2^-e for a finite x from 2^e to below 2^(e+1), x >= 0; the power is kept from over- and
// underflow, which leaves what is below 2^-1000 small.
template <typename Real>
FUSEDSTEP_HD Real inverse_power(Real x) {
  using Bits = Index<Real>;
  const Bits low = filled<Bits>(23), high = filled<Bits>(2023);
  Bits exponent = bit_cast<Bits>(x) >> 52;
  exponent = exponent < low ? low : exponent > high ? high : exponent;
  return bit_cast<Real>((2046 - exponent) << 52);
}

FUSEDSTEP_HD constexpr int rounded_to_four(int n) { return (n + 3) & ~3; }

// Elements at equal distances: a row, a column. `Memory` is a pointer, or what FUSEDSTEP_SHARED
// declares.
template <typename Memory>
struct Cells {
  Memory memory;
  int begin, stride;
  FUSEDSTEP_HD decltype(auto) operator[](int i) const { return memory[begin + i * stride]; }
};

// A square whose rows lie an odd number of elements apart, so that lanes that go down a column meet
// no bank of shared memory twice; or whose columns lie in one piece each, `by_columns`, for a
// thread that takes several elements of a column at once.
template <typename Memory, int side, bool by_columns>
struct Square {
  static constexpr int kRow = by_columns ? 1 : side + 1, kColumn = by_columns ? side : 1;
  static constexpr int kSize = side * (side + !by_columns);
  Memory memory;
  int begin;
  FUSEDSTEP_HD decltype(auto) operator()(int row, int column) const {
    return memory[begin + row * kRow + column * kColumn];
  }
  FUSEDSTEP_HD Cells<Memory> row(int i) const { return {memory, begin + i * kRow, kColumn}; }
  FUSEDSTEP_HD Cells<Memory> column(int j) const { return {memory, begin + j * kColumn, kRow}; }
};

// The memory in which one matrix is inverted.
template <typename Memory, int side, bool by_columns = false>
struct Workspace {
  using Matrix = Square<Memory, side, by_columns>;
  static constexpr int kSize = 2 * Matrix::kSize + 3 * side;
  Matrix x, l;
  Cells<Memory> u, v, w;
  FUSEDSTEP_HD Workspace(Memory memory, int begin)
      : x{memory, begin},
        l{memory, begin + x.kSize},
        u{memory, begin + 2 * x.kSize, 1},
        v{memory, begin + 2 * x.kSize + side, 1},
        w{memory, begin + 2 * x.kSize + 2 * side, 1} {}
};

// Of the elements from `begin` on, a multiple of four.
template <typename Real, typename Memory>
FUSEDSTEP_HD Real dot(const Cells<Memory>& a, const Cells<Memory>& b, int count, int begin = 0) {
  Real s0 = {}, s1 = {}, s2 = {}, s3 = {};
  for (int i = begin; i < count; i += 4) {
    s0 += a[i] * b[i];
    s1 += a[i + 1] * b[i + 1];
    s2 += a[i + 2] * b[i + 2];
    s3 += a[i + 3] * b[i + 3];
  }
  return (s0 + s1) + (s2 + s3);
}

// Swaps element i with the one at `j`, which differs between matrices.
template <typename Real, typename Memory>
FUSEDSTEP_HD void swap(const Cells<Memory>& cells, int i, const Index<Real>& j) {
  if constexpr (kNumbers<Real> == 1) {
    const Real x = cells[i], y = cells[static_cast<int>(j)];
    cells[i] = y;
    cells[static_cast<int>(j)] = x;
  } else {
    for (int w = 0; w < kNumbers<Real>; ++w) {
      if (j[w] != i) {
        const double x = cells[i][w], y = cells[static_cast<int>(j[w])][w];
        cells[i][w] = y;
        cells[static_cast<int>(j[w])][w] = x;
      }
    }
  }
}

}  // namespace fusedstep::tiny
