// X = Q R of tiny matrices by Householder's reflections with pivoting, and X⁺ = R⁻¹ Qᵀ where R is
// not singular.
//
// X⁺ A and A X⁺ are both to err by the condition of A times the unit roundoff. For the first, Q
// must be orthogonal to rounding, which Gram-Schmidt's is not; for both, R⁻¹ must be an inverse
// from either side, and it is where no element of a row of R exceeds the one on the diagonal by
// much: N. J. Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapters 8 and 19.
#pragma once

#include "kernels/linalg/tiny_matrix.h"

namespace fusedstep::tiny {

// The column from j on that comes next: the first of the longest, or j itself if no other is more
// than twice as long.
template <typename Real, typename Cells>
FUSEDSTEP_HD Index<Real> next_column(const Cells& squares, int j, int columns) {
  Real most = 4.0 * squares[j];
  auto next = filled<Index<Real>>(j);
  for (int k = j + 1; k < columns; ++k) {
    const Real square = squares[k];
    next = square > most ? filled<Index<Real>>(k) : next;
    most = larger(most, square);
  }
  return next;
}

// Makes that column the next one, in X, in the part of R computed so far and in `order`.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void bring_forward(const Team& team, int rows, int columns, int j, const Square& x,
                                const Square& l, const Cells& squares, const Cells& order) {
  const Index<Real> pivot = next_column<Real>(squares, j, columns);
  team.sync();
  for (int i = team.first(); i < rows; i += team.step()) {
    swap<Real>(x.row(i), j, pivot);
  }
  for (int i = team.first(); i < j; i += team.step()) {
    swap<Real>(l.column(i), j, pivot);
  }
  if (team.first() == 0) {
    swap<Real>(squares, j, pivot);
    swap<Real>(order, j, pivot);
  }
  team.sync();
}

// The factor of v vᵀ in the reflection of which v_j is the first element; v is zero, or |v_j| >= 1.
template <typename Real>
FUSEDSTEP_HD Real factor_of(Real v_j) {
  return 1.0 / larger(magnitude(v_j), filled<Real>(1.0));
}

// (I - factor v vᵀ) a over a, where v is zero above row `top`. Returns the sum of the squares of
// what is below that row.
template <typename Real, typename Cells>
FUSEDSTEP_HD Real reflect(const Cells& v, Real factor, const Cells& a, int rows, int top) {
  const int begin = top & ~3;
  const Real along = dot<Real>(v, a, rows, begin) * factor;
  a[top] = a[top] - along * v[top];
  Real s0 = {}, s1 = {}, s2 = {}, s3 = {};
  for (int i = top + 1; i < begin + 4; ++i) {
    const Real left = a[i] - along * v[i];
    a[i] = left;
    s0 += left * left;
  }
  for (int i = begin + 4; i < rows; i += 4) {
    const Real r0 = a[i] - along * v[i], r1 = a[i + 1] - along * v[i + 1];
    const Real r2 = a[i + 2] - along * v[i + 2], r3 = a[i + 3] - along * v[i + 3];
    a[i] = r0;
    a[i + 1] = r1;
    a[i + 2] = r2;
    a[i + 3] = r3;
    s0 += r0 * r0;
    s1 += r1 * r1;
    s2 += r2 * r2;
    s3 += r3 * r3;
  }
  return (s0 + s1) + (s2 + s3);
}

// X = Q R: Rᵀ to the lower half of `l`, and over X the vectors v of the reflections I - v vᵀ /
// |v_j| whose product is Q, with zeros above v_j. `rows` are a multiple of four; squares[j] are
// those of the columns' lengths, and order[j] becomes the column of X that became the j-th.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void factorise(const Team& team, int rows, int columns, const Square& x,
                            const Square& l, const Cells& squares, const Cells& order) {
  for (int j = team.first(); j < columns; j += team.step()) {
    order[j] = filled<Real>(1.0 * j);
  }
  for (int j = 0; j < columns; ++j) {
    bring_forward<Real>(team, rows, columns, j, x, l, squares, order);
    const auto v = x.column(j);
    const Real length = square_root(dot<Real>(v, v, rows, j & ~3));
    const Real head = v[j];
    const Real diagonal = head < Real{} ? length : -length;
    const Real inverse = length > Real{} ? 1.0 / length : Real{};
    team.sync();
    for (int i = j + team.first(); i < rows; i += team.step()) {
      v[i] = (i == j ? head - diagonal : Real(v[i])) * inverse;
    }
    if (team.first() == 0) {
      l(j, j) = diagonal;
    }
    team.sync();
    const Real factor = factor_of<Real>(v[j]);
    for (int k = j + 1 + team.first(); k < columns; k += team.step()) {
      const auto next = x.column(k);
      squares[k] = reflect<Real>(v, factor, next, rows, j);
      l(k, j) = next[j];
      next[j] = Real{};
    }
    team.sync();
  }
}

// Q over the vectors of its reflections.
template <typename Real, typename Team, typename Square>
FUSEDSTEP_HD void form_q(const Team& team, int rows, int columns, const Square& x) {
  for (int j = columns - 1; j >= 0; --j) {
    const auto v = x.column(j);
    const Real factor = factor_of<Real>(v[j]);
    const Real sign = v[j] < Real{} ? filled<Real>(-1.0) : filled<Real>(1.0);
    for (int k = j + 1 + team.first(); k < columns; k += team.step()) {
      reflect<Real>(v, factor, x.column(k), rows, j);
    }
    team.sync();
    for (int i = j + team.first(); i < rows; i += team.step()) {
      v[i] = (i == j ? filled<Real>(1.0) : Real{}) - sign * v[i];
    }
    team.sync();
  }
}

// Q R⁻ᵀ over Q, a row by each lane: zero in the columns j of which after[j] is not 0, and in those
// from `columns` on, as if R ended there.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void solve_rows(const Team& team, int rows, int k, int columns, const Square& x,
                             const Square& l, const Cells& after, const Cells& inverses) {
  for (int j = team.first(); j < columns; j += team.step()) {
    inverses[j] = after[j] > Real{} ? Real{} : 1.0 / l(j, j);
  }
  team.sync();
  for (int j = columns; j < k; ++j) {
    for (int i = team.first(); i < rows; i += team.step()) {
      x(i, j) = Real{};
    }
  }
  for (int j = columns - 1; j >= 0; --j) {
    const auto solved = x.column(j);
    const Real inverse = inverses[j];
    for (int i = team.first(); i < rows; i += team.step()) {
      solved[i] = solved[i] * inverse;
    }
    for (int k = 0; k < j; ++k) {
      const auto next = x.column(k);
      const Real factor = l(j, k);
      for (int i = team.first(); i < rows; i += team.step()) {
        next[i] = next[i] - factor * solved[i];
      }
    }
  }
  team.sync();
}

}  // namespace fusedstep::tiny
