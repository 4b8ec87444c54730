// The proof that no singular value of X counts as zero, from G = XᵀX and its inverse.
//
// The squares of the singular values are G's eigenvalues, so sigma_1² <= |G|_F and
// sigma_k² >= 1 / |G⁻¹|_F, less a bound on the rounding error. If that bound exceeds the tolerance
// of the other, so does every singular value.
//
// Sums are added in this order, in float64, so that every device gives the same bits:
//
// clang-format off
//   rows of a matrix   ->  strips of 32 rows; the last may be shorter
//   a strip of G⁻¹     ->  squares: column j to lane j % 32, each lane row after row and in a row
//                          from the first column on; the lanes then fold by halves: lane l takes
//                          lane l + 16, then l + 8, ...
//   a strip of G       ->  twice what is left of the diagonal, since G is symmetric, added so; then
//                          the squares on the diagonal, row i in lane i % 32, folded so
//   a matrix           ->  strip s to lane s % 32, each from the first on, folded so; so too the
//                          trace of G
// clang-format on
#pragma once

#include "kernels/common/reduce.h"
#include "kernels/linalg/gram.h"

namespace fusedstep {

constexpr int kCertificateLanes = 32;
constexpr int64_t kCertificateRows = 32;  // of a strip: a lane has one element of the diagonal

enum class Verdict : int32_t {
  kCertified,
  kNotFinite,  // there is a NaN or an infinity in X
  kOpen,       // something may count as zero, or there was no inverse
  kBlurred     // the same, and the tolerance is too small for G's eigenvalues to decide
};

struct Certificates {
  const double* gram;           // [batch, width, width]; what is above the diagonal is not read
  const double* inverse;        // [batch, width, width]
  const bool* exists;           // [batch]: G was positive definite
  const double *atol, *rtol;    // [batch]: sigma counts as zero unless above atol, rtol * sigma_1
  int64_t batch, count, width;  // X is [batch, count, width]
  // Room for the results of strips, [batch, strips_of(width)].
  double *gram_strips, *inverse_strips, *traces;
  int32_t* verdict;  // [batch], a Verdict
  int64_t* rank;     // [batch]: width, or 0 where not certified
  double* rcond;     // [batch]: a lower bound on sigma_k / sigma_1, or 0
};

FUSEDSTEP_HD int64_t strips_of(int64_t width) {
  return (width + kCertificateRows - 1) / kCertificateRows;
}

// A singular value counts as zero unless it exceeds this.
FUSEDSTEP_HD double tolerance_of(double atol, double rtol, double largest) {
  return nan_max(atol, rtol * largest);
}

// `gram` and `inverse` are the sums of squares of a matrix. A NaN certifies nothing.
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

namespace cpu {

// Ranges of the strips of all matrices, and of the matrices. All strips come before the first
// matrix.
void sum_strips(const Certificates& certificates, int64_t begin, int64_t end);
void certify_matrices(const Certificates& certificates, int64_t begin, int64_t end);

}  // namespace cpu

}  // namespace fusedstep
