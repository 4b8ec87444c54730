// A batch of tiny matrices to be inverted or solved with: the arguments, how each is read, and the
// results.
//
// X is A, or Aᵀ where A is wide, times the power of two that brings its largest element near 1.
#pragma once

#include <limits>

#include "kernels/common/reduce.h"
#include "kernels/linalg/tiny_matrix.h"

namespace fusedstep {

// One number for all matrices, or one for each.
struct Tolerance {
  double all = 0;
  const double* each = nullptr;
  int64_t stride = 1;
};

// `count` matrices A `[rows, columns]` without gaps, float32 or float64, and their results. All
// matrices here have A's dtype.
struct TinyPinv {
  const void* A;
  Dtype dtype;
  int rows, columns;
  int64_t count;
  Tolerance atol, rtol;
  bool jacobi;              // without trying QR
  const void* B = nullptr;  // [rows, right_sides] of each; null: A⁺ itself is wanted
  int right_sides = 0;      // that is, columns of B
  void* result;             // A⁺ [columns, rows], or A⁺ B [columns, right_sides]
  int64_t* rank = nullptr;  // singular values above max(atol, rtol * the largest); null where
  int32_t* code = nullptr;  // nobody asks, as the next two
  double* rcond = nullptr;  // smallest over largest of those, or a lower bound
};

namespace tiny {

// Constants, since device code may not call the functions that return them.
template <typename Storage>
constexpr Storage kNan = std::numeric_limits<Storage>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr double kDone = 0, kNotFinite = 1, kFailed = 2;  // the codes

// The places of X's elements in A and of X⁺'s in A⁺. X is `long_side` x `k`.
struct Shape {
  int long_side, k, size;
  bool wide;
  FUSEDSTEP_HD explicit Shape(const TinyPinv& p)
      : long_side(p.rows > p.columns ? p.rows : p.columns),
        k(p.rows > p.columns ? p.columns : p.rows),
        size(p.rows * p.columns),
        wide(p.rows < p.columns) {}
  template <typename Index>
  FUSEDSTEP_HD Index place_in_inverse(Index i, int j) const {  // of element (i, j), i < k
    return wide ? j * k + i : i * long_side + j;
  }
};

// To A's type or an integer. Every NaN gets the same bits, in which devices differ.
template <typename Storage>
FUSEDSTEP_HD Storage rounded(double x) {
  return x == x ? static_cast<Storage>(x) : kNan<Storage>;
}

// What is known of X before it is factorised.
template <typename Real>
struct Facts {
  Mask<Real> finite;  // all elements are; else X is zero
  Real scale;
  Real square;  // of the Frobenius norm
};

template <typename Real, typename Cells>
FUSEDSTEP_HD Real sum(const Cells& cells, int count) {
  Real total = {};
  for (int i = 0; i < count; ++i) {
    total += cells[i];
  }
  return total;
}

template <typename Real, typename Cells>
FUSEDSTEP_HD Real largest(const Cells& cells, int count) {
  Real most = cells[0];
  for (int i = 1; i < count; ++i) {
    most = larger<Real>(most, cells[i]);
  }
  return most;
}

template <typename Real, typename Team, typename Square>
FUSEDSTEP_HD void clear(const Team& team, int rows, int columns, const Square& x) {
  team.sync();  // no lane reads the old values any more
  for (int j = team.first(); j < columns; j += team.step()) {
    for (int i = 0; i < rows; ++i) {
      x(i, j) = Real{};
    }
  }
  team.sync();
}

// X to `x`, with zeros up to multiples of four; squares[j] become those of its columns' lengths.
template <typename Real, typename Storage, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD Facts<Real> load(const Team& team, const TinyPinv& p, const Square& x,
                              const Cells& squares) {
  const Shape shape(p);
  const int rows = rounded_to_four(shape.long_side);
  clear<Real>(team, rows, rounded_to_four(shape.k), x);
  const Real infinite = filled<Real>(kInfinity);
  for (int j = team.first(); j < p.columns; j += team.step()) {
    Real most = {};
    for (int i = 0; i < p.rows; ++i) {
      const Real value =
          team.template load<Storage>(p.A, shape.size, Place<Real>{} + (i * p.columns + j));
      x(shape.wide ? j : i, shape.wide ? i : j) = value;
      most = larger(most, value - value == Real{} ? magnitude(value) : infinite);
    }
    squares[j] = most;
  }
  team.sync();
  const Real most = largest<Real>(squares, p.columns);
  const Mask<Real> finite = most < infinite;
  const Real scale = inverse_power(finite ? most : filled<Real>(1.0));
  team.sync();
  for (int j = team.first(); j < shape.k; j += team.step()) {
    const auto column = x.column(j);
    for (int i = 0; i < shape.long_side; ++i) {
      column[i] = finite ? column[i] * scale : Real{};
    }
    squares[j] = dot<Real>(column, column, rows);
  }
  team.sync();
  const Real square = sum<Real>(squares, shape.k);
  team.sync();
  return {finite, scale, square};
}

// One matrix's tolerance for X, whose largest singular value is `largest`.
template <typename Real, typename Team>
FUSEDSTEP_HD Real tolerance(const Team& team, const TinyPinv& p, Real scale, Real largest) {
  const auto of_matrix = [&](const Tolerance& t) {
    return t.each == nullptr ? filled<Real>(t.all)
                             : Real(team.template load<double>(t.each, t.stride, Place<Real>{}));
  };
  return nan_max(of_matrix(p.atol) * scale, of_matrix(p.rtol) * largest);
}

// A⁺ of the matrices in `where`, from X⁺ᵀ in `x` with its columns in an order; NaN except for those
// in `good`.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD void store_inverse(const Team& team, const TinyPinv& p, Mask<Real> where,
                                Mask<Real> good, Real scale, const Work& work) {
  const Shape shape(p);
  for (int j = 0; j < shape.k; ++j) {
    const auto row = converted<Place<Real>>(Real(work.v[j]));
    for (int i = team.first(); i < shape.long_side; i += team.step()) {
      const Real value = work.x(i, j) * scale + 0.0;  // no zero is negative
      team.store(static_cast<Storage*>(p.result), shape.size, shape.place_in_inverse(row, i),
                 good ? value : filled<Real>(kNan<double>), where);
    }
  }
}

// A⁺ B likewise, column by column of B by way of u.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD void store_solution(const Team& team, const TinyPinv& p, Mask<Real> where,
                                 Mask<Real> good, Real scale, const Work& work) {
  const Shape shape(p);
  const auto place_of = [&](int j) { return converted<Place<Real>>(Real(work.v[j])); };
  for (int c = 0; c < p.right_sides; ++c) {
    team.sync();
    for (int i = team.first(); i < rounded_to_four(p.rows); i += team.step()) {
      Real value = {};
      if (i < p.rows) {
        const auto row = shape.wide ? place_of(i) : Place<Real>{} + i;
        value = team.template load<Storage>(p.B, p.rows * p.right_sides, row * p.right_sides + c);
      }
      work.u[i] = value;
    }
    team.sync();
    for (int i = team.first(); i < p.columns; i += team.step()) {
      const auto factors = shape.wide ? work.x.row(i) : work.x.column(i);
      const Real sum = dot<Real>(factors, work.u, rounded_to_four(p.rows));
      const auto row = shape.wide ? Place<Real>{} + i : place_of(i);
      team.store(static_cast<Storage*>(p.result), p.columns * p.right_sides,
                 row * p.right_sides + c, good ? sum * scale + 0.0 : filled<Real>(kNan<double>),
                 where);
    }
  }
}

// Results other than A⁺ or A⁺ B.
template <typename Real, typename Team>
FUSEDSTEP_HD void store_facts(const Team& team, const TinyPinv& p, Mask<Real> where,
                              Mask<Real> good, Mask<Real> finite, Real rank, Real rcond) {
  if (team.first() == 0 && p.rank != nullptr) {
    const Real lack = finite ? filled<Real>(kFailed) : filled<Real>(kNotFinite);
    team.store(p.rank, 1, Place<Real>{}, good ? rank : Real{}, where);
    team.store(p.code, 1, Place<Real>{}, good ? filled<Real>(kDone) : lack, where);
    team.store(p.rcond, 1, Place<Real>{}, good ? rcond : filled<Real>(kNan<double>), where);
  }
}

// Calls f with a value of A's type and the side of the squares that hold it, as constants.
template <typename F>
auto with_storage_and_side(const TinyPinv& p, F&& f) {
  const auto with_side = [&](auto storage) {
    const int longer = Shape(p).long_side;
    return longer <= 8    ? f(storage, std::integral_constant<int, 8>{})
           : longer <= 16 ? f(storage, std::integral_constant<int, 16>{})
                          : f(storage, std::integral_constant<int, kLargest>{});
  };
  return p.dtype == Dtype::kFloat64 ? with_side(double{}) : with_side(float{});
}

}  // namespace tiny
}  // namespace fusedstep
