// The proofs of full rank on the CPU: the lanes of a sum are those of vector registers.
#include "kernels/cpu/certificate.h"

namespace fusedstep::cpu {
namespace {

constexpr int kLanesOfSum = kCertificateLanes;

double fold(double (&lanes)[kLanesOfSum]) {
  for (int half = kLanesOfSum / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      lanes[l] += lanes[l + half];
    }
  }
  return lanes[0];
}

FUSEDSTEP_CLONES double sum_of_squares(const double* x, int64_t count) {
  double lanes[kLanesOfSum] = {};
  for (; count >= kLanesOfSum; count -= kLanesOfSum, x += kLanesOfSum) {
    for (int l = 0; l < kLanesOfSum; ++l) {
      lanes[l] += x[l] * x[l];
    }
  }
  for (int l = 0; l < count; ++l) {
    lanes[l] += x[l] * x[l];
  }
  return fold(lanes);
}

}  // namespace

void sum_squares(const Certificates& c, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) {
    const int64_t row = at % c.width;
    const double* of_gram = c.gram + at * c.width;
    c.gram_rows[at] = certified_row(sum_of_squares(of_gram, row), of_gram[row]);
    c.inverse_rows[at] = sum_of_squares(c.inverse + at * c.width, c.width);
  }
}

void certify_matrices(const Certificates& c, int64_t begin, int64_t end) {
  for (int64_t matrix = begin; matrix < end; ++matrix) {
    const int64_t first = matrix * c.width;
    double gram[kLanesOfSum] = {}, inverse[kLanesOfSum] = {}, trace[kLanesOfSum] = {};
    for (int64_t i = 0; i < c.width; ++i) {
      gram[i % kLanesOfSum] += c.gram_rows[first + i];
      inverse[i % kLanesOfSum] += c.inverse_rows[first + i];
      trace[i % kLanesOfSum] += c.gram[(first + i) * c.width + i];
    }
    certify(c, matrix, fold(gram), fold(inverse), fold(trace));
  }
}

}  // namespace fusedstep::cpu
