// The pseudo-inverse of matrices of at most 32 rows and columns, in float64 and rounded once: by QR
// where a certificate proves that no singular value counts as zero, else by one-sided Jacobi. X X⁺
// and X⁺ X both err by the condition of X times the unit roundoff, at any rank.
#pragma once

#include "kernels/linalg/gram.h"
#include "kernels/linalg/tiny_jacobi.h"
#include "kernels/linalg/tiny_problem.h"
#include "kernels/linalg/tiny_qr.h"

namespace fusedstep {
namespace tiny {

// Writes R⁻¹ Qᵀ, or NaN where an element is not finite, and returns where it is not proven to be
// X⁺: where a singular value may count as zero.
//
// The certificate: sigma_1 <= |X|_F and sigma_k >= 1 / |X⁺|_F, less what rounding may have done.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD Mask<Real> invert_by_qr(const Team& team, const TinyPinv& p, const Work& work) {
  const Shape shape(p);
  const auto [x, l, u, v] = work;
  const int rows = rounded_to_four(shape.long_side);
  const Facts<Real> facts = load<Real, Storage>(team, p, x, u);
  factorise<Real>(team, rows, shape.k, x, l, u, v);
  form_q<Real>(team, rows, shape.k, x);
  solve_rows<Real>(team, shape.long_side, shape.k, x, l, u);
  for (int i = team.first(); i < shape.long_side; i += team.step()) {
    u[i] = dot<Real>(x.row(i), x.row(i), rounded_to_four(shape.k));
  }
  team.sync();
  const Real largest = square_root(facts.square);
  const Real of_inverse = square_root(sum<Real>(u, shape.long_side));
  const Real smallest = 1.0 / of_inverse - gram_error(shape.long_side, shape.k) * largest;
  const Real threshold = tolerance(team, p, facts.scale, largest) * (1 + 32 * kUnit);
  const Mask<Real> good = facts.finite & (smallest > threshold);
  const Mask<Real> done = team.here() & (good | !facts.finite);
  store_facts(team, p, done, good, facts.finite, filled<Real>(1.0 * shape.k), smallest / largest);
  store_inverse<Storage>(team, p, team.here(), facts.finite, facts.scale, v,
                         [=](int i, int j) { return Real(x(i, j)); });
  return team.here() & !done;
}

// Counts the singular values of the matrices in `where`, and mends the inverses of those of `open`
// of which some count as zero: Rᵀ J = W sigma by rotations J, and X⁺ = W sigma⁻¹ (Q J)ᵀ of those
// that do not. Where all count, R⁻¹ Qᵀ stays: it errs by what is left of the condition when every
// column is scaled to length 1.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD void invert_by_jacobi(const Team& team, const TinyPinv& p, const Work& work,
                                   Mask<Real> where, Mask<Real> open) {
  const Shape shape(p);
  const auto [x, l, u, v] = work;
  const int k = shape.k, columns = rounded_to_four(k), rows = rounded_to_four(shape.long_side);
  const Facts<Real> facts = load<Real, Storage>(team, p, x, u);
  clear<Real>(team, columns, columns, l);
  factorise<Real>(team, rows, k, x, l, u, v);
  const bool vectors = team.any(open);
  if (vectors) {
    form_q<Real>(team, rows, k, x);
  }
  const Mask<Real> good =
      facts.finite & orthogonalise<Real>(team, columns, k, l, u, vectors ? shape.long_side : 0, x);

  const Real sigma_1 = square_root(largest<Real>(u, k));
  const Real threshold = tolerance(team, p, facts.scale, sigma_1);
  Real rank = {}, smallest = sigma_1;
  for (int j = 0; j < k; ++j) {
    const Real sigma = square_root<Real>(u[j]);
    const Mask<Real> keep = sigma > threshold;
    rank += keep ? filled<Real>(1.0) : Real{};
    smallest = (keep & (sigma < smallest)) ? sigma : smallest;
  }
  const Real rcond = rank > Real{} ? smallest / sigma_1 : Real{};
  store_facts(team, p, where, good, facts.finite, rank, rcond);

  const Mask<Real> deficient = open & (rank < filled<Real>(1.0 * k));
  const Mask<Real> mended = where & (deficient | !good);
  if (!team.any(mended)) {
    return;
  }
  for (int j = team.first(); j < k; j += team.step()) {  // W sigma to W / sigma
    const Real square = u[j];
    const Real inverse = square_root(square) > threshold ? 1.0 / square : Real{};
    for (int i = 0; i < k; ++i) {
      l(i, j) = l(i, j) * inverse;
    }
  }
  team.sync();
  store_inverse<Storage>(team, p, mended, good, facts.scale, v,
                         [=](int i, int j) { return dot<Real>(l.row(j), x.row(i), columns); });
}

}  // namespace tiny

namespace cpu {

// Eight at once, any range by any thread. Matrices [begin, end), each of which has an element.
void tiny_pinv(const TinyPinv& p, int64_t begin, int64_t end);

}  // namespace cpu

}  // namespace fusedstep
