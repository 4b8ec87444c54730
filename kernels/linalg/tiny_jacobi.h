// One-sided Jacobi on tiny matrices: pairs of columns rotated until all are orthogonal.
//
// M. R. Hestenes 1958, "Inversion of matrices by biorthogonalization", on Rᵀ of a QR factorisation
// with pivoting, which takes half as many sweeps as X itself: Z. Drmac and K. Veselic 2008, "New
// fast and accurate Jacobi SVD algorithm". Disjoint pairs at once, in the order of a round robin
// tournament. The columns of Q turn with those of Rᵀ: dividing by the singular values instead would
// leave those of small ones far from orthogonal.
#pragma once

#include "kernels/linalg/tiny_matrix.h"

namespace fusedstep::tiny {

constexpr int kSweeps = 30;  // 5 to 8 are usual; the last only checks

// The square of a column that is left alone, of an X whose largest element is near 1. Columns that
// are noise get shorter by rounding errors from sweep to sweep, until their squares are denormal
// and no angle is right any more.
constexpr double kNothing = 0x1p-960;

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

// Rotates columns p and q of `l` unless they are orthogonal to rounding, and with them those of Q,
// the first `q_rows` rows of x; returns whether they were not. Their squared lengths change by what
// the angle says, and are summed anew in the next sweep. The angle is that of G. H. Golub and C. F.
// Van Loan, Matrix Computations, section 8.6.3; here tan = 2 gamma / (|beta - alpha| + h) with h
// its hypotenuse, which needs one division.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD Mask<Real> rotate(const Team& team, int rows, Pair pair, const Square& l,
                               const Cells& squares, int q_rows, const Square& x) {
  const auto p = l.column(pair.p), q = l.column(pair.q);
  const Real p_square = squares[pair.p], q_square = squares[pair.q];
  const Real scale = inverse_power(larger(p_square, q_square));  // squares of these follow
  const Real alpha = p_square * scale, beta = q_square * scale;
  const Real product = dot<Real>(p, q, rows), gamma = product * scale;
  const Mask<Real> turn = (gamma * gamma > rows * kUnit * kUnit * (alpha * beta)) &
                          (p_square > filled<Real>(kNothing)) & (q_square > filled<Real>(kNothing));
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
  for (int i = 0; i < rows; ++i) {
    const Real x = p[i], y = q[i];
    p[i] = c * x - s * y;
    q[i] = s * x + c * y;
  }
  const Real moved = s * (2.0 * c * product - s * (q_square - p_square));
  squares[pair.p] = larger(p_square - moved, Real{});
  squares[pair.q] = larger(q_square + moved, Real{});
  const auto p_of_q = x.column(pair.p), q_of_q = x.column(pair.q);
  for (int i = 0; i < q_rows; ++i) {
    const Real x = p_of_q[i], y = q_of_q[i];
    p_of_q[i] = c * x - s * y;
    q_of_q[i] = s * x + c * y;
  }
  return turn;
}

// Columns of `l` orthogonal to each other, squares[j] the squares of their lengths; those of Q, the
// first `q_rows` rows of x, get the same rotations. Returns whether that took no more than kSweeps.
// `rows` are a multiple of four.
//
// A pair needs its neighbours' seats of the round before. So a team may take kRounds rounds at
// once, each a seat behind the one before: the columns of the later rounds are then still in its
// cache.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD Mask<Real> orthogonalise(const Team& team, int rows, int columns, const Square& l,
                                      const Cells& squares, int q_rows, const Square& x) {
  const int even = (columns + 1) & ~1;
  Mask<Real> turned = Real{} < filled<Real>(1.0);
  for (int sweep = 0; sweep < kSweeps && team.any(turned); ++sweep) {
    for (int j = team.first(); j < columns; j += team.step()) {
      squares[j] = dot<Real>(l.column(j), l.column(j), rows);
    }
    team.sync();
    turned = Real{} < Real{};
    for (int round = 0; round < even - 1; round += Team::kRounds) {
      for (int step = team.first(); step < even / 2 + Team::kRounds - 1; step += team.step()) {
        for (int later = 0; later < Team::kRounds; ++later) {
          const int seat = step - later;
          const Pair pair = pair_of(round + later, seat, even);
          if (seat >= 0 && seat < even / 2 && round + later < even - 1 && pair.q < columns) {
            turned |= rotate<Real>(team, rows, pair, l, squares, q_rows, x);
          }
        }
      }
      team.sync();
    }
    turned = team.of_matrix(turned);
  }
  return !turned;
}

}  // namespace fusedstep::tiny
