// The rank that R of a QR factorisation shows, and R cut down to it: a complete orthogonal
// factorisation of tiny matrices, G. H. Golub and C. F. Van Loan, Matrix Computations, section
// 5.4.7, with one step more.
//
// The rows of R from `rank` on are E, so small that they count as zero. Reflections from the right
// turn the other rows into a triangle T and zeros; then E has elements left of and below T. Those
// would turn the space that T's columns span by about |E| / sigma, which is far from rounding where
// E is what float32 leaves of zeros. So reflections from the left clear what is below T. Of E then
// remains an error of (|E| / sigma)² in the inverse.
#pragma once

#include "kernels/linalg/tiny_matrix.h"

namespace fusedstep::tiny {

// Of R's rows: how many count, at least `least` and at most `most` for the matrices at work
// together, and the sum of the squares of the rest.
template <typename Real>
struct Rank {
  Real rank, rest;
  int least, most;
};

// R is lᵀ; above its diagonal `l` is zero. `threshold(x)` is a matrix's tolerance if its largest
// singular value is x. squares[j] become those of R's rows, then 1 for rows that do not count and
// 0 for those that do.
template <typename Real, typename Team, typename Square, typename Cells, typename Threshold>
FUSEDSTEP_HD Rank<Real> rank_of(const Team& team, int k, const Square& l, const Cells& squares,
                                const Threshold& threshold) {
  for (int j = team.first(); j < k; j += team.step()) {
    squares[j] = dot<Real>(l.column(j), l.column(j), rounded_to_four(k));
  }
  team.sync();
  // The largest singular value is at least as long as a row.
  const Real limit = threshold(square_root<Real>(squares[0]));
  Real sum = {};
  Rank<Real> found{filled<Real>(1.0 * k), {}, 0, k};
  for (int j = k - 1; j >= 0; --j) {
    sum += squares[j];
    const Mask<Real> zero = square_root(sum * (1 + 64 * kUnit)) <= limit;
    found.rank = zero ? filled<Real>(1.0 * j) : found.rank;
    found.rest = zero ? sum : found.rest;
  }
  while (found.least < k && !team.any(found.rank <= filled<Real>(1.0 * found.least))) {
    ++found.least;
  }
  while (found.most > 0 && !team.any(found.rank >= filled<Real>(1.0 * found.most))) {
    --found.most;
  }
  team.sync();
  for (int j = team.first(); j < k; j += team.step()) {
    squares[j] = filled<Real>(1.0 * j) < found.rank ? Real{} : filled<Real>(1.0);
  }
  team.sync();
  return found;
}

// I - factor v vᵀ with v_j = 1, v_q = tail[q] where after[q] is 1, not 0, and 0 elsewhere.
template <typename Real, typename Cells>
struct Reflection {
  int j, begin, end;
  Cells tail, after;
  Real factor;

  FUSEDSTEP_HD Real v(int q) const { return tail[q] * after[q]; }
  FUSEDSTEP_HD Real square() const {  // of the tail
    Real sum = {};
    for (int q = begin; q < end; ++q) {
      sum += v(q) * v(q);
    }
    return sum;
  }
};

constexpr double kNoTail = 0x1p-900;  // a smaller square would leave a tail with none

template <typename Square>
struct Transposed {
  Square m;
  FUSEDSTEP_HD decltype(auto) operator()(int i, int j) const { return m(j, i); }
};

// The reflection that turns l(j, j) and the tail into one number, which goes to l(j, j), of the
// matrices in which row or column j of R counts; the others get none. Its own tail replaces that.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD Reflection<Real, Cells> reflection_of(const Team& team, int j, int k,
                                                   const Rank<Real>& rank, const Square& l,
                                                   const Cells& tail, const Cells& after) {
  Reflection<Real, Cells> r{j, j + 1 > rank.least ? j + 1 : rank.least, k, tail, after, {}};
  const Real square = r.square(), head = l(j, j);
  const Mask<Real> turns = (filled<Real>(1.0 * j) < rank.rank) & (square > kNoTail);
  const Real length = square_root(head * head + square);
  const Real turned = head < Real{} ? length : -length;
  const Real inverse = turns ? 1.0 / (head - turned) : filled<Real>(1.0);
  r.factor = turns ? (turned - head) / turned : Real{};
  team.sync();
  for (int q = r.begin + team.first(); q < k; q += team.step()) {
    tail[q] = after[q] > Real{} ? tail[q] * inverse : Real(tail[q]);
  }
  if (team.first() == 0) {
    l(j, j) = turns ? turned : head;
  }
  team.sync();
  return r;
}

// The rows [begin, end) of M (I - factor v vᵀ) in place, those for which counts(i) is 1, not 0.
template <typename Real, typename Team, typename Matrix, typename Cells, typename Counts>
FUSEDSTEP_HD void reflect_rows(const Team& team, int begin, int end, const Matrix& m,
                               const Reflection<Real, Cells>& r, const Cells& along,
                               const Counts& counts) {
  for (int i = begin + team.first(); i < end; i += team.step()) {
    along[i] = m(i, r.j);
  }
  for (int q = r.begin; q < r.end; ++q) {
    const Real v = r.v(q);
    for (int i = begin + team.first(); i < end; i += team.step()) {
      along[i] = along[i] + m(i, q) * v;
    }
  }
  for (int i = begin + team.first(); i < end; i += team.step()) {
    along[i] = along[i] * (r.factor * counts(i));
    m(i, r.j) = m(i, r.j) - along[i];
  }
  for (int q = r.begin; q < r.end; ++q) {
    const Real v = r.v(q);
    for (int i = begin + team.first(); i < end; i += team.step()) {
      m(i, q) = m(i, q) - along[i] * v;
    }
  }
  team.sync();
}

// R's rows that count become T and the tails of reflections Z from the right, in `l`; and Q, the
// first `rows` rows of x, gets the reflections from the left. `along` is for their use.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void cut_down(const Team& team, int rows, int k, const Rank<Real>& rank,
                           const Square& x, const Square& l, const Cells& after,
                           const Cells& along) {
  const Transposed<Square> R{l};
  const auto all = [](int) { return filled<Real>(1.0); };
  const auto of_rest = [&](int i) { return Real(after[i]); };
  const auto of_rank = [&](int i) { return 1.0 - after[i]; };
  for (int j = rank.most - 1; j >= 0; --j) {
    const auto r = reflection_of<Real>(team, j, k, rank, l, l.column(j), after);
    reflect_rows<Real>(team, 0, j, R, r, along, all);
    reflect_rows<Real>(team, r.begin, k, R, r, along, of_rest);
  }
  for (int j = 0; j < rank.most; ++j) {
    const auto r = reflection_of<Real>(team, j, k, rank, l, l.row(j), after);
    reflect_rows<Real>(team, j + 1, rank.most, l, r, along, of_rank);
    reflect_rows<Real>(team, 0, rows, x, r, along, all);
  }
}

// X⁺ᵀ = [x 0] Zᵀ of x = Q T⁻ᵀ, whose columns that do not count are zero.
template <typename Real, typename Team, typename Square, typename Cells>
FUSEDSTEP_HD void turn_back(const Team& team, int rows, int k, const Rank<Real>& rank,
                            const Square& x, const Square& l, const Cells& after,
                            const Cells& along) {
  for (int j = 0; j < rank.most; ++j) {
    Reflection<Real, Cells> r{j, j + 1 > rank.least ? j + 1 : rank.least, k, l.column(j), after,
                              {}};
    const Real square = r.square();
    const Mask<Real> turns = (filled<Real>(1.0 * j) < rank.rank) & (square > Real{});
    r.factor = turns ? 2.0 / (1.0 + square) : Real{};
    reflect_rows<Real>(team, 0, rows, x, r, along, [](int) { return filled<Real>(1.0); });
  }
}

}  // namespace fusedstep::tiny
