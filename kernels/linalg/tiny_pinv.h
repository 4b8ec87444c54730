// The pseudo-inverse of matrices of at most 32 rows and columns, in float64 and rounded once: by QR
// where a certificate proves that no singular value counts as zero, else by one-sided Jacobi.
#pragma once

#include "kernels/linalg/gram.h"
#include "kernels/linalg/tiny_jacobi.h"
#include "kernels/linalg/tiny_problem.h"
#include "kernels/linalg/tiny_qr.h"

namespace fusedstep {
namespace tiny {

// Inverts by QR where the certificate holds, writes NaN where an element is not finite, and returns
// the rest.
//
// The certificate: sigma_1 <= |X|_F and sigma_k >= 1 / |X⁺|_F, less what rounding may have done.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD Mask<Real> invert_by_qr(const Team& team, const TinyPinv& p, const Work& work) {
  const Shape shape(p);
  const auto [x, l, u, v] = work;
  const Facts<Real> facts = load<Real, Storage>(team, p, x, u);
  gram_schmidt<Real, false>(team, rounded_to_four(shape.long_side), shape.k, x, l, u, v);
  solve_rows<Real>(team, shape.long_side, shape.k, x, l, u);
  for (int i = team.first(); i < shape.long_side; i += team.step()) {
    v[i] = dot<Real>(x.row(i), x.row(i), rounded_to_four(shape.k));
  }
  team.sync();
  const Real largest = square_root(facts.square);
  const Real of_inverse = square_root(sum<Real>(v, shape.long_side));
  const Real smallest = 1.0 / of_inverse - gram_error(shape.long_side, shape.k) * largest;
  const Real threshold = tolerance(team, p, facts.scale, largest) * (1 + 32 * kUnit);
  const Mask<Real> good = facts.finite & (smallest > threshold);
  const Mask<Real> done = team.here() & (good | !facts.finite);
  store_facts(team, p, done, good, facts.finite, filled<Real>(1.0 * shape.k), smallest / largest);
  store_inverse<Storage>(team, p, done, good, facts.scale,
                         [=](int i, int j) { return Real(x(i, j)); });
  return team.here() & !done;
}

// Inverts the matrices in `where`, whose singular values and W are those of Rᵀ J = W sigma, X = Q R
// with pivoting. Where all count, X⁺ = R⁻¹ Qᵀ, which errs by what is left of the condition when
// every column is scaled to length 1; else X⁺ = W sigma⁻¹ Uᵀ with U = X W sigma⁻¹ of those that do.
template <typename Storage, typename Real, typename Team, typename Work>
FUSEDSTEP_HD void invert_by_jacobi(const Team& team, const TinyPinv& p, const Work& work,
                                   Mask<Real> where) {
  const Shape shape(p);
  const auto [x, l, u, v] = work;
  const int k = shape.k, columns = rounded_to_four(k);
  const Facts<Real> facts = load<Real, Storage>(team, p, x, u);
  clear<Real>(team, columns, columns, l);
  gram_schmidt<Real, true>(team, rounded_to_four(shape.long_side), k, x, l, u, v);
  solve_rows<Real>(team, shape.long_side, k, x, l, u);
  const Mask<Real> good = facts.finite & orthogonalise<Real>(team, columns, k, l, u);

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

  const Mask<Real> deficient = where & good & (rank < filled<Real>(1.0 * k));
  for (int i = team.first(); i < shape.long_side; i += team.step()) {
    restore_order<Real>(k, x.row(i), v);
  }
  store_inverse<Storage>(team, p, where & !deficient, good, facts.scale,
                         [=](int i, int j) { return Real(x(i, j)); });
  if (!team.any(deficient)) {
    return;
  }
  for (int j = team.first(); j < k; j += team.step()) {  // W sigma to W / sigma
    const Real square = u[j];
    const Real inverse = square_root(square) > threshold ? 1.0 / square : Real{};
    for (int i = 0; i < k; ++i) {
      l(i, j) = l(i, j) * inverse;
    }
    restore_order<Real>(k, l.column(j), v);
  }
  load<Real, Storage>(team, p, x, u);
  for (int i = 0; i < shape.long_side; ++i) {  // X to U, row by row
    for (int j = team.first(); j < k; j += team.step()) {
      u[j] = dot<Real>(x.row(i), l.column(j), columns);
    }
    team.sync();
    for (int j = team.first(); j < k; j += team.step()) {
      x(i, j) = Real(u[j]);
    }
    team.sync();
  }
  store_inverse<Storage>(team, p, deficient, deficient, facts.scale,
                         [=](int i, int j) { return dot<Real>(l.row(j), x.row(i), columns); });
}

}  // namespace tiny

namespace cpu {

// Eight at once, any range by any thread. Matrices [begin, end), each of which has an element.
void tiny_pinv(const TinyPinv& p, int64_t begin, int64_t end);

}  // namespace cpu

}  // namespace fusedstep
