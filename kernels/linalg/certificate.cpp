// The proofs of full rank on the CPU: the lanes of a sum are those of vector registers.
#include "kernels/linalg/certificate.h"

#include <algorithm>

#include "kernels/common/reduce.h"

namespace fusedstep::cpu {
namespace {

constexpr int kLanesOfSum = kCertificateLanes;

double fold(double (&lanes)[kLanesOfSum]) { return fold_by_halves<kLanesOfSum>(lanes, Add()); }

FUSEDSTEP_CLONES void add_squares(const double* x, int64_t count, double* lanes) {
  for (; count >= kLanesOfSum; count -= kLanesOfSum, x += kLanesOfSum) {
    for (int l = 0; l < kLanesOfSum; ++l) {
      lanes[l] += x[l] * x[l];
    }
  }
  for (int l = 0; l < count; ++l) {
    lanes[l] += x[l] * x[l];
  }
}

}  // namespace

void sum_strips(const Certificates& c, int64_t begin, int64_t end) {
  const int64_t strips = strips_of(c.width);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t first = at % strips * kCertificateRows;
    const int64_t last = std::min(first + kCertificateRows, c.width);
    double left[kLanesOfSum] = {}, diagonal[kLanesOfSum] = {}, trace[kLanesOfSum] = {};
    double inverse[kLanesOfSum] = {};
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = (at / strips * c.width + i) * c.width;
      add_squares(c.gram + row, i, left);
      add_squares(c.inverse + row, c.width, inverse);
      trace[i - first] = c.gram[row + i];
      diagonal[i - first] = trace[i - first] * trace[i - first];
    }
    c.gram_strips[at] = 2 * fold(left) + fold(diagonal);
    c.inverse_strips[at] = fold(inverse);
    c.traces[at] = fold(trace);
  }
}

void certify_matrices(const Certificates& c, int64_t begin, int64_t end) {
  const int64_t strips = strips_of(c.width);
  for (int64_t matrix = begin; matrix < end; ++matrix) {
    double gram[kLanesOfSum] = {}, inverse[kLanesOfSum] = {}, trace[kLanesOfSum] = {};
    for (int64_t s = 0; s < strips; ++s) {
      gram[s % kLanesOfSum] += c.gram_strips[matrix * strips + s];
      inverse[s % kLanesOfSum] += c.inverse_strips[matrix * strips + s];
      trace[s % kLanesOfSum] += c.traces[matrix * strips + s];
    }
    certify(c, matrix, fold(gram), fold(inverse), fold(trace));
  }
}

}  // namespace fusedstep::cpu
