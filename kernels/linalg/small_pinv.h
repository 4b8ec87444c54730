// The pseudo-inverse of one matrix that a core's cache holds, or its product with right-hand sides,
// in float64 and rounded once; on the CPU. One thread finds it without a call of LAPACK, whose
// calls and blocks pay off for larger matrices.
//
// clang-format off
//   X P = Q R + E         by Householder's reflections with pivoting P, which end as soon as what is
//                         left, E, counts as zero: after r columns
//   r = k                 X⁺ᵀ = Q R⁻ᵀ Pᵀ
//   r < k                 Rᵀ = V S, X P V = U T, X⁺ᵀ = U T⁻ᵀ (P V)ᵀ, also by reflections
// clang-format on
//
// The last is a QLP decomposition (G. W. Stewart 1999, "The QLP approximation to the singular value
// decomposition") whose second step multiplies X itself: a step of subspace iteration. V is off
// from the leading right singular vectors by about (|E| / sigma_r)², and U by less.
//
// The certificate: sigma_1 <= |X|_F; sigma_r >= 1 / |X⁺|_F, less what rounding may have done, and
// exceeds the tolerance of that; sigma_{r+1} <= |E|_F, which does not exceed the tolerance of the
// first row's length. And (|E|_F |X⁺|_F)² is less than rounding. Where it fails nothing is known.
#pragma once

#include "kernels/linalg/tiny_problem.h"

namespace fusedstep::cpu {

// Whether the results of a matrix are proved, and so written: all NaN where an element is not
// finite. The `rank`, `code` and `rcond` of the problem are not.
bool small_pinv(const TinyPinv& p, int64_t matrix);

}  // namespace fusedstep::cpu
