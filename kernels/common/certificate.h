// The proof that no singular value of X counts as zero, from G = XᵀX and its inverse.
//
// The squares of the singular values are G's eigenvalues, so sigma_1² <= |G|_F and
// sigma_k² >= 1 / |G⁻¹|_F, from which is taken what rounding may have done to it. If that bound
// exceeds the tolerance of the other, so does every singular value.
//
// Sums are added in this order, in float64, so that every device gives the same bits:
//
// clang-format off
//   squares left of the diagonal in a row of G, all in a row of G⁻¹
//                      ->  column j to lane j % 32, each lane from the first on; the lanes then
//                          fold by halves: lane l takes lane l + 16, then l + 8, ...
//   a row of G         ->  twice that, since G is symmetric, and then the square on the diagonal
//   a matrix           ->  row i to lane i % 32, the lanes as above; so too the trace of G
// clang-format on
#pragma once

#include "kernels/common/gram.h"
#include "kernels/common/norm.h"

namespace fusedstep {

constexpr int kCertificateLanes = 32;

enum class Verdict : int32_t {
  kCertified,
  kNotFinite,  // there is a NaN or an infinity in X
  kOpen,       // something may count as zero, or there was no inverse
  kBlurred     // so, and the tolerance is too small for the eigenvalues of G to decide
};

struct Certificates {
  const double* gram;           // [batch, width, width]; what is above the diagonal is not read
  const double* inverse;        // [batch, width, width]
  const bool* exists;           // [batch]: G was positive definite
  const double *atol, *rtol;    // [batch]: sigma counts as zero unless above atol, rtol * sigma_1
  int64_t batch, count, width;  // X is [batch, count, width]
  double *gram_rows, *inverse_rows;  // [batch, width]: room for the sums over rows
  int32_t* verdict;                  // [batch], a Verdict
  int64_t* rank;                     // [batch]: width, or 0 where not certified
  double* rcond;                     // [batch]: a lower bound on sigma_k / sigma_1, or 0
};

FUSEDSTEP_HD double certified_row(double squares_left, double diagonal) {
  return 2 * squares_left + diagonal * diagonal;
}

// A singular value counts as zero unless it exceeds this.
FUSEDSTEP_HD double tolerance_of(double atol, double rtol, double largest) {
  return nan_max(atol, rtol * largest);
}

// `gram` and `inverse` are the sums of squares of a matrix. What is NaN certifies nothing.
FUSEDSTEP_HD void certify(const Certificates& c, int64_t matrix, double gram, double inverse,
                          double trace) {
  constexpr double kSlack = 1 + 0x1p-48;  // of the comparison itself
  const double norm = std::sqrt(gram), error = gram_error(c.count, c.width);
  const double least = 1 / std::sqrt(inverse) - error * norm;
  const double largest = std::sqrt(norm), smallest = least > 0 ? std::sqrt(least) : 0;
  const double atol = c.atol[matrix], rtol = c.rtol[matrix];
  const bool certified = c.exists[matrix] && smallest > tolerance_of(atol, rtol, largest) * kSlack;
  // |X|_F is at least sigma_1, and at most sqrt(k) times it.
  const double length = std::sqrt(trace), mean = length / std::sqrt(static_cast<double>(c.width));
  const bool blurred = tolerance_of(atol, rtol, mean) < std::sqrt(error) * length;
  const Verdict verdict = !is_finite(trace) ? Verdict::kNotFinite
                          : certified       ? Verdict::kCertified
                          : blurred         ? Verdict::kBlurred
                                            : Verdict::kOpen;
  const bool done = verdict == Verdict::kCertified;
  c.verdict[matrix] = static_cast<int32_t>(verdict);
  c.rank[matrix] = done ? c.width : 0;
  c.rcond[matrix] = done ? smallest / largest : 0;
}

}  // namespace fusedstep
