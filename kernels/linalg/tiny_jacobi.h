// One-sided Jacobi on tiny matrices: pairs of columns rotated until all are orthogonal.
//
// M. R. Hestenes 1958, "Inversion of matrices by biorthogonalization", on Rᵀ of a QR factorisation
// with pivoting, which takes half as many sweeps as X itself and needs no product of rotations: Z.
// Drmac and K. Veselic 2008, "New fast and accurate Jacobi SVD algorithm". Disjoint pairs at once,
// in the order of a round robin tournament.
#pragma once

#include "kernels/linalg/tiny_matrix.h"

namespace fusedstep::tiny {

constexpr int kSweeps = 30;  // 5 to 8 are usual; the last only checks

// Who meets whom: `even` players, of whom the last keeps a seat and the others move round.
struct Pair {
  int p, q;
};
FUSEDSTEP_HD Pair pair_of(int round, int seat, int even) {
  const int others = even - 1;
  if (seat == 0) {
    return {round, others};
  }
  const int p = round + seat, q = round - seat;
  return {p < others ? p : p - others, q < 0 ? q + others : q};
}

// Rotates columns p and q unless they are orthogonal to rounding; returns whether they were not.
// The angle is that of G. H. Golub and C. F. Van Loan, Matrix Computations, section 8.6.3; here
// tan = 2 gamma / (|beta - alpha| + h) with h its hypotenuse, which needs one division.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD Mask<Real> rotate(const Team& team, int rows, Pair pair, const Square& l,
                               const Cells& squares) {
  const auto p = l.column(pair.p), q = l.column(pair.q);
  const Real p_square = squares[pair.p], q_square = squares[pair.q];
  const Real scale = inverse_power(larger(p_square, q_square));  // squares of these follow
  const Real alpha = p_square * scale, beta = q_square * scale;
  const Real gamma = dot<Real>(p, q, rows) * scale;
  const Mask<Real> turn = gamma * gamma > rows * kUnit * kUnit * (alpha * beta);
  if (!team.any_here(turn)) {
    return turn;
  }
  const Real difference = beta - alpha;
  const Real opposite = difference < Real{} ? -2.0 * gamma : 2.0 * gamma;
  const Real h = square_root(difference * difference + opposite * opposite);
  const Real adjacent = magnitude(difference) + h;
  const Real inverse = 1.0 / square_root(adjacent * adjacent + opposite * opposite);
  const Real c = turn ? adjacent * inverse : filled<Real>(1.0);
  const Real s = turn ? opposite * inverse : Real{};
  Real p_turned = {}, q_turned = {};
  for (int i = 0; i < rows; ++i) {
    const Real x = p[i], y = q[i];
    const Real along_p = c * x - s * y, along_q = s * x + c * y;
    p[i] = along_p;
    q[i] = along_q;
    p_turned += along_p * along_p;
    q_turned += along_q * along_q;
  }
  squares[pair.p] = turn ? p_turned : p_square;
  squares[pair.q] = turn ? q_turned : q_square;
  return turn;
}

// Columns orthogonal to each other, squares[j] the squares of their lengths. Returns whether that
// took no more than kSweeps. `rows` are a multiple of four.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD Mask<Real> orthogonalise(const Team& team, int rows, int columns, const Square& l,
                                      const Cells& squares) {
  for (int j = team.first(); j < columns; j += team.step()) {
    squares[j] = dot<Real>(l.column(j), l.column(j), rows);
  }
  team.sync();
  const int even = (columns + 1) & ~1;
  Mask<Real> turned = Real{} < filled<Real>(1.0);
  for (int sweep = 0; sweep < kSweeps && team.any(turned); ++sweep) {
    turned = Real{} < Real{};
    for (int round = 0; round < even - 1; ++round) {
      for (int seat = team.first(); seat < even / 2; seat += team.step()) {
        const Pair pair = pair_of(round, seat, even);
        if (pair.q < columns) {
          turned |= rotate<Real>(team, rows, pair, l, squares);
        }
      }
      team.sync();
    }
    turned = team.of_matrix(turned);
  }
  return !turned;
}

}  // namespace fusedstep::tiny
