// The rank of X and a basis of its row space, from G = XᵀX, with the proof that they are right.
//
// G ≈ RᵀR by Cholesky's method with pivots: each next row of R belongs to the largest element left
// on the diagonal of the Schur complement G - RᵀR, and there are no more when what is left counts
// as zero (N. J. Higham 1990, "Analysis of the Cholesky decomposition of a semi-definite matrix").
// If the rank r is k, W is R⁻¹; else W = R⁺ = Rᵀ (RRᵀ)⁻¹. Then G⁺ = W Wᵀ and X⁺ = W (X W)ᵀ.
//
// X = Q R + E with Qᵀ E = 0, so G = RᵀR + EᵀE, and |E|_F² is the trace of the Schur complement. The
// span of the rows of R is off from the leading right singular vectors by at most about
// (|E| / sigma_r)²: the square of what pivoted QR has (Courrieu 2005, "Fast computation of
// Moore-Penrose inverse matrices", has the formula for G⁺).
//
// What is proved, with `error` a bound on the rounding errors of G's eigenvalues:
//
// clang-format off
//   sigma_1²           lies between |G|_F² / trace(G) and |G|_F; also below the root of |G²|_F
//   sigma_{r+1}²   <=  the trace of the Schur complement + error: it counts as zero
//   sigma_r²       >=  1 / |WᵀW| - error: it does not
// clang-format on
//
// The norm of WᵀW is its trace, and Frobenius's where that proves nothing; only then is G squared.
//
// On a CPU only: a GPU has eigh for the whole batch in one call.
#pragma once

#include <functional>

#include "kernels/linalg/certificate.h"

namespace fusedstep {

struct RowSpaces {
  const double* gram;           // [batch, width, width]; what is above the diagonal is not read
  const double *atol, *rtol;    // [batch]: sigma counts as zero unless above atol, rtol * sigma_1
  int64_t batch, count, width;  // X is [batch, count, width]
  // For X that are not exact in G: all that is within its rounding errors counts as zero, whatever
  // the tolerance is, and nothing is proved. W is not computed for rank k.
  bool guess;
  double* inverses;  // [batch, width, width]: Wᵀ, whose rows from the rank on are zero
  int32_t* verdict;  // [batch], a Verdict; kOpen also if sigma_{r+1} is too near to sigma_r
  int64_t* rank;     // [batch]; 0 if not certified
  double* rcond;     // [batch]: a lower bound on sigma_r / sigma_1; 0 for rank 0 or not certified
};

// The largest (|E| / sigma_r)² for which the result is right to float32's last digit.
constexpr double kRowSpaceAngle = 0x1p-26;

// What is known of G before it is factorised.
struct GramBounds {
  double trace;
  double error;      // of each eigenvalue
  double most;       // at least sigma_1²
  double discarded;  // a trace of the Schur complement up to this counts as zero
  double kept;       // sigma_r² above this does not
  bool blurred;      // the tolerance is within the rounding errors
};

constexpr double kBoundSlack = 1 + 0x1p-44;  // of the sums of squares and of the comparisons

// Where sigma_1² is at most `most`.
inline double kept_above(const RowSpaces& s, int64_t matrix, double most) {
  const double high = tolerance_of(s.atol[matrix], s.rtol[matrix], std::sqrt(most));
  return high * high * kBoundSlack;
}

inline GramBounds bounds_of(const RowSpaces& s, int64_t matrix, double trace, double squares) {
  const double norm = std::sqrt(squares), error = gram_error(s.count, s.width) * norm;
  const double least = trace > 0 ? squares / trace : 0;
  const double atol = s.atol[matrix], rtol = s.rtol[matrix];
  const double low = tolerance_of(atol, rtol, std::sqrt(least));
  return {.trace = trace,
          .error = error,
          .most = norm * kBoundSlack,
          .discarded = s.guess ? error : low * low / kBoundSlack - error,
          .kept = kept_above(s, matrix, norm),
          .blurred = low * low < error};
}

// What a factorisation leaves: norms of the Schur complement and of WᵀW.
struct Rest {
  double left_trace, left_norm, inverse_norm;
};

inline void conclude(const RowSpaces& s, int64_t matrix, const GramBounds& g, int64_t rank,
                     const Rest& rest) {
  const double smallest = rank > 0 ? 1 / rest.inverse_norm - g.error : g.most;
  const bool all = rank == s.width, none = rank == 0;
  const bool discards =
      all || (rest.left_trace <= g.discarded && rest.left_norm <= kRowSpaceAngle * smallest);
  const bool keeps = none || (smallest > g.kept && smallest > 0);
  const Verdict verdict = !is_finite(g.trace)              ? Verdict::kNotFinite
                          : s.guess || (discards && keeps) ? Verdict::kCertified
                          : g.blurred                      ? Verdict::kBlurred
                                                           : Verdict::kOpen;
  const bool certified = verdict == Verdict::kCertified;
  s.verdict[matrix] = static_cast<int32_t>(verdict);
  s.rank[matrix] = certified ? rank : 0;
  s.rcond[matrix] = certified && !none && smallest > 0 ? std::sqrt(smallest / g.most) : 0;
}

namespace cpu {

// Calls f(begin, end) on ranges of `count` things, on several threads where it can.
using Shares = std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& f)>;

// For one matrix. The bits do not depend on the shares.
void find_row_space(const RowSpaces& spaces, int64_t matrix, const Shares& shares);

}  // namespace cpu

}  // namespace fusedstep
