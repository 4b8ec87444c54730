// The pseudo-inverse of matrices of at most 32 rows and columns, or its product with right-hand
// sides, in float64 and rounded once: by QR where a certificate proves how many singular values
// count as zero, else by one-sided Jacobi. X X⁺ and X⁺ X both err by the condition of X times the
// unit roundoff, at any rank.
#pragma once

#include "kernels/linalg/gram.h"
#include "kernels/linalg/tiny_deficient.h"
#include "kernels/linalg/tiny_jacobi.h"
#include "kernels/linalg/tiny_problem.h"
#include "kernels/linalg/tiny_qr.h"

namespace fusedstep {
namespace tiny {

// What an inverse may err by for leaving out what does not count, relative to itself.
template <typename Storage>
constexpr double kNeglected = sizeof(Storage) == 8 ? kUnit : 0x1p-30;

// What a method found out about a matrix.
template <typename Real>
struct Found {
  Real rank, rcond;
  Mask<Real> good;    // else the inverse is NaN
  Mask<Real> proven;  // the rank, and with it the inverse
};

// X⁺ᵀ = Q R⁻ᵀ, or what replaces it where R is cut down, over Q.
//
// The certificate: sigma_1 <= |X|_F and the least that counts >= 1 / |X⁺|_F, less what rounding may
// have done; the next does not exceed |E|, which does not count.
template <typename Storage, typename Real, typename Team, typename Work, typename Threshold>
FUSEDSTEP_HD Found<Real> invert_by_qr(const Team& team, const Shape& shape, const Work& work,
                                      const Facts<Real>& facts, const Rank<Real>& rank,
                                      const Threshold& threshold) {
  const auto [x, l, u, v, w] = work;
  const int k = shape.k;
  const bool deficient = rank.least < k;
  if (deficient) {
    cut_down<Real>(team, shape.long_side, k, rank, x, l, u, w);
  }
  solve_rows<Real>(team, shape.long_side, k, rank.most, x, l, u, w);
  if (deficient) {
    turn_back<Real>(team, shape.long_side, k, rank, x, l, u, w);
  }
  for (int i = team.first(); i < shape.long_side; i += team.step()) {
    u[i] = dot<Real>(x.row(i), x.row(i), rounded_to_four(k));
  }
  team.sync();
  const Real largest = square_root(facts.square);
  const Real of_inverse = square_root(sum<Real>(u, shape.long_side));
  const Real smallest = 1.0 / of_inverse - gram_error(shape.long_side, k) * largest;
  const Mask<Real> counts = smallest > threshold(largest) * (1 + 32 * kUnit);
  const Mask<Real> exact = rank.rest * (of_inverse * of_inverse) <= kNeglected<Storage>;
  const Mask<Real> proven = (counts & exact) | !facts.finite;
  return {rank.rank, rank.rank > Real{} ? smallest / largest : Real{}, facts.finite, proven};
}

// X⁺ᵀ = Q J sigma⁻¹ Wᵀ over Q, from Rᵀ J = W sigma by rotations J; or only the rank, not `wanted`.
template <typename Real, typename Team, typename Work, typename Threshold>
FUSEDSTEP_HD Found<Real> invert_by_jacobi(const Team& team, const Shape& shape, const Work& work,
                                          const Facts<Real>& facts, bool wanted,
                                          const Threshold& threshold) {
  const auto [x, l, u, v, w] = work;
  const int k = shape.k, columns = rounded_to_four(k);
  const Mask<Real> good =
      facts.finite & orthogonalise<Real>(team, columns, k, l, u, wanted ? shape.long_side : 0, x);
  const Real sigma_1 = square_root(largest<Real>(u, k));
  const Real limit = threshold(sigma_1);
  Real rank = {}, smallest = sigma_1;
  for (int j = 0; j < k; ++j) {
    const Real sigma = square_root<Real>(u[j]);
    const Mask<Real> keep = sigma > limit;
    rank += keep ? filled<Real>(1.0) : Real{};
    smallest = (keep & (sigma < smallest)) ? sigma : smallest;
  }
  if (wanted) {
    for (int j = team.first(); j < k; j += team.step()) {  // W sigma to W / sigma
      const Real square = u[j];
      const Real inverse = square_root(square) > limit ? 1.0 / square : Real{};
      for (int i = 0; i < k; ++i) {
        l(i, j) = l(i, j) * inverse;
      }
    }
    team.sync();
    for (int i = 0; i < shape.long_side; ++i) {
      for (int j = team.first(); j < k; j += team.step()) {
        w[j] = dot<Real>(l.row(j), x.row(i), columns);
      }
      team.sync();
      for (int j = team.first(); j < k; j += team.step()) {
        x(i, j) = w[j];
      }
      team.sync();
    }
  }
  return {rank, rank > Real{} ? smallest / sigma_1 : Real{}, good, Real{} == Real{}};
}

// Writes the results of the matrices in `where`, NaN where an element is not finite. Returns those
// whose rank QR does not prove.
//
// `by_jacobi`: again, of those of which QR left the rank `open`, and for a caller who wants Jacobi
// the others' ranks. Where all singular values count, R⁻¹ Qᵀ stays: it errs by what is left of the
// condition when every column is scaled to length 1.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD Mask<Real> invert(const Team& team, const TinyPinv& p, const Work& work,
                               bool by_jacobi, Mask<Real> where, Mask<Real> open) {
  const Shape shape(p);
  const auto [x, l, u, v, w] = work;
  const int k = shape.k, columns = rounded_to_four(k), rows = rounded_to_four(shape.long_side);
  const Facts<Real> facts = load<Real, Storage>(team, p, x, u);
  const auto threshold = [&](Real largest) { return tolerance(team, p, facts.scale, largest); };
  clear<Real>(team, columns, columns, l);
  factorise<Real>(team, rows, k, x, l, u, v);
  const Rank<Real> by_qr = rank_of<Real>(team, k, l, u, [&](Real largest) {
    return p.jacobi ? filled<Real>(-1.0) : threshold(largest);  // then all count
  });
  const bool wanted = team.any(open);
  if (wanted) {
    form_q<Real>(team, rows, k, x);
  }
  const Found<Real> found =
      by_jacobi ? invert_by_jacobi<Real>(team, shape, work, facts, wanted, threshold)
                : invert_by_qr<Storage, Real>(team, shape, work, facts, by_qr, threshold);
  store_facts(team, p, where & found.proven, found.good, facts.finite, found.rank, found.rcond);

  const Real all = filled<Real>(1.0 * k);
  const Mask<Real> deficient = open & ((found.rank < all) | (by_qr.rank < all));
  const Mask<Real> mended = where & (deficient | !found.good);
  const Mask<Real> written = by_jacobi ? mended : where;
  if (team.any(written)) {
    if (p.B != nullptr) {
      store_solution<Storage, Real>(team, p, written, found.good, facts.scale, work);
    } else {
      store_inverse<Storage, Real>(team, p, written, found.good, facts.scale, work);
    }
  }
  return where & !found.proven;
}

}  // namespace tiny

namespace cpu {

// Eight at once, any range by any thread. Matrices [begin, end), each of which has an element.
void tiny_pinv(const TinyPinv& p, int64_t begin, int64_t end);

// One, in a fraction of the time of eight.
void tiny_pinv_alone(const TinyPinv& p, int64_t matrix);

// The same for matrices of one type and size, which take long to compile: tiny_pinv_of.cpp.in and
// tiny_pinv_alone_of.cpp.in become a source file for each.
template <typename Storage, int side>
void tiny_pinv_of(const TinyPinv& p, int64_t begin, int64_t end);
template <typename Storage, int side>
void tiny_pinv_alone_of(const TinyPinv& p, int64_t matrix);

}  // namespace cpu

}  // namespace fusedstep
