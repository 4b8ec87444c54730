// X = Q R of tiny matrices by modified Gram-Schmidt, and X⁺ = R⁻¹ Qᵀ for an R without singularity.
//
// A. Björck 1967, "Solving linear least squares problems by Gram-Schmidt orthogonalization": R is
// as good as Householder's, and Q is off from orthogonal by the condition of X times the unit
// roundoff, which is what X⁺ may be off anyway.
#pragma once

#include "kernels/linalg/tiny_matrix.h"

namespace fusedstep::tiny {

// The first of the longest columns from `begin` on.
template <typename Real, typename Cells>
FUSEDSTEP_HD Index<Real> longest_column(const Cells& squares, int begin, int columns) {
  Real most = squares[begin];
  auto longest = filled<Index<Real>>(begin);
  for (int j = begin + 1; j < columns; ++j) {
    const Real square = squares[j];
    longest = square > most ? filled<Index<Real>>(j) : longest;
    most = larger(most, square);
  }
  return longest;
}

// Makes the longest of the columns from j on the next one, in X and in the part of R computed so
// far.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void bring_forward(const Team& team, int rows, int columns, int j, const Square& x,
                                const Square& l, const Cells& squares, const Cells& pivots) {
  const Index<Real> pivot = longest_column<Real>(squares, j, columns);
  team.sync();
  for (int i = team.first(); i < rows; i += team.step()) {
    swap<Real>(x.row(i), j, pivot);
  }
  for (int i = team.first(); i < j; i += team.step()) {
    swap<Real>(l.column(i), j, pivot);
  }
  if (team.first() == 0) {
    swap<Real>(squares, j, pivot);
    pivots[j] = converted<Real>(pivot);
  }
  team.sync();
}

// Takes the swaps of `bring_forward` back, in cells whose order is that of X's columns.
template <typename Real, typename Cells>
FUSEDSTEP_HD void restore_order(int columns, const Cells& cells, const Cells& pivots) {
  for (int j = columns - 1; j >= 0; --j) {
    swap<Real>(cells, j, converted<Index<Real>>(Real(pivots[j])));
  }
}

// Q over X and Rᵀ to the lower half of `l`; `rows` are a multiple of four. Pivoted: squares[j] are
// those of the columns' lengths, and pivots[j] becomes the place of the longest remaining column. A
// column that vanishes becomes NaN, or zero if pivoted.
template <typename Real, bool pivoted, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void gram_schmidt(const Team& team, int rows, int columns, const Square& x,
                               const Square& l, const Cells& squares, const Cells& pivots) {
  for (int j = 0; j < columns; ++j) {
    if constexpr (pivoted) {
      bring_forward<Real>(team, rows, columns, j, x, l, squares, pivots);
    }
    const auto unit = x.column(j);
    const Real length = square_root(dot<Real>(unit, unit, rows));
    Real inverse = 1.0 / length;
    if constexpr (pivoted) {
      inverse = length > Real{} ? inverse : Real{};
    }
    team.sync();
    for (int i = team.first(); i < rows; i += team.step()) {
      unit[i] = unit[i] * inverse;
    }
    if (team.first() == 0) {
      l(j, j) = length;
    }
    team.sync();
    for (int k = j + 1 + team.first(); k < columns; k += team.step()) {
      const auto next = x.column(k);
      const Real along = dot<Real>(unit, next, rows);
      l(k, j) = along;
      for (int i = 0; i < rows; ++i) {
        next[i] = next[i] - along * unit[i];
      }
      if constexpr (pivoted) {
        squares[k] = dot<Real>(next, next, rows);
      }
    }
    team.sync();
  }
}

// X⁺ᵀ = Q R⁻ᵀ over Q, a row by each lane.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void solve_rows(const Team& team, int rows, int columns, const Square& x,
                             const Square& l, const Cells& inverses) {
  for (int j = team.first(); j < columns; j += team.step()) {
    inverses[j] = 1.0 / l(j, j);
  }
  team.sync();
  for (int i = team.first(); i < rows; i += team.step()) {
    const auto row = x.row(i);
    for (int j = columns - 1; j >= 0; --j) {
      const Real solved = row[j] * inverses[j];
      row[j] = solved;
      for (int k = 0; k < j; ++k) {
        row[k] = row[k] - l(j, k) * solved;
      }
    }
  }
  team.sync();
}

}  // namespace fusedstep::tiny
