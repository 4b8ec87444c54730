// Textbook decompositions of one column-major matrix, for the stand-ins of cuSOLVER and cuBLAS.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace lapack {

constexpr int kSweeps = 60;
constexpr double kUnit = std::numeric_limits<double>::epsilon() / 2;

// A view of a square matrix, column by column.
struct Matrix {
  double* data;
  int64_t n;
  double& operator()(int64_t row, int64_t column) const { return data[row + column * n]; }
};

// U of A = Uᵀ U over A's upper triangle; returns 0, or 1 + the first row whose pivot is not
// positive.
inline int cholesky(const Matrix& a) {
  for (int64_t j = 0; j < a.n; ++j) {
    for (int64_t i = 0; i <= j; ++i) {
      for (int64_t k = 0; k < i; ++k) a(i, j) -= a(k, i) * a(k, j);
      if (i < j) a(i, j) /= a(i, i);
    }
    if (!(a(j, j) > 0)) return static_cast<int>(j) + 1;
    a(j, j) = std::sqrt(a(j, j));
  }
  return 0;
}

// B becomes the solution of U X = B.
inline void solve_upper(const Matrix& u, const Matrix& b) {
  for (int64_t j = 0; j < b.n; ++j) {
    for (int64_t i = u.n - 1; i >= 0; --i) {
      for (int64_t k = i + 1; k < u.n; ++k) b(i, j) -= u(i, k) * b(k, j);
      b(i, j) /= u(i, i);
    }
  }
}

// Columns p and q of `a`, turned.
inline void rotate(const Matrix& a, int64_t p, int64_t q, double c, double s) {
  for (int64_t i = 0; i < a.n; ++i) {
    const double x = a(i, p), y = a(i, q);
    a(i, p) = c * x - s * y;
    a(i, q) = s * x + c * y;
  }
}

// Singular values, descending, by one-sided Jacobi: A becomes U σ and V has the rotations. Returns
// whether it converged.
inline bool orthogonalise(const Matrix& a, const Matrix& v, double* values) {
  for (int64_t i = 0; i < v.n * v.n; ++i) v.data[i] = i % (v.n + 1) == 0;
  bool turned = true;
  for (int sweep = 0; turned && sweep < kSweeps; ++sweep) {
    turned = false;
    for (int64_t p = 0; p < a.n; ++p) {
      for (int64_t q = p + 1; q < a.n; ++q) {
        double x = 0, y = 0, xy = 0;
        for (int64_t i = 0; i < a.n; ++i) {
          x += a(i, p) * a(i, p);
          y += a(i, q) * a(i, q);
          xy += a(i, p) * a(i, q);
        }
        // NaN is never small enough: it turns until the sweeps are used up.
        if (std::abs(xy) <= 4 * kUnit * std::sqrt(x * y)) continue;
        turned = true;
        const double zeta = (y - x) / (2 * xy);
        const double t = std::copysign(1 / (std::abs(zeta) + std::hypot(zeta, 1)), zeta);
        const double c = 1 / std::hypot(t, 1);
        rotate(a, p, q, c, c * t);
        rotate(v, p, q, c, c * t);
      }
    }
  }
  for (int64_t j = 0; j < a.n; ++j) {
    values[j] = std::sqrt(std::inner_product(&a(0, j), &a(0, j) + a.n, &a(0, j), 0.0));
  }
  return !turned;
}

// Columns of `a` in the order of `order`.
inline void permute(const Matrix& a, const std::vector<int64_t>& order) {
  const std::vector<double> old(a.data, a.data + a.n * a.n);
  for (int64_t j = 0; j < a.n; ++j) {
    std::copy_n(old.data() + order[j] * a.n, a.n, &a(0, j));
  }
}

// Makes column j of `u` a unit vector that is orthogonal to those before it.
inline void complete(const Matrix& u, int64_t j) {
  double best = 0;
  std::vector<double> found(u.n);
  for (int64_t axis = 0; axis < u.n; ++axis) {
    std::vector<double> x(u.n, 0.0);
    x[axis] = 1;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t k = 0; k < j; ++k) {
        const double along = std::inner_product(x.begin(), x.end(), &u(0, k), 0.0);
        for (int64_t i = 0; i < u.n; ++i) x[i] -= along * u(i, k);
      }
    }
    const double norm = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
    if (norm > best) {
      best = norm;
      for (int64_t i = 0; i < u.n; ++i) found[i] = x[i] / norm;
    }
  }
  std::copy(found.begin(), found.end(), &u(0, j));
}

// A = U σ Vᵀ, σ descending; A is lost. Returns whether it converged.
inline bool svd(const Matrix& a, double* values, const Matrix& u, const Matrix& v) {
  const bool converged = orthogonalise(a, v, values);
  std::vector<int64_t> order(a.n);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](int64_t i, int64_t j) { return values[i] > values[j]; });
  permute(a, order);
  permute(v, order);
  std::ranges::sort(values, values + a.n, std::greater<>());
  std::copy_n(a.data, a.n * a.n, u.data);
  for (int64_t j = 0; j < a.n; ++j) {
    if (values[j] > a.n * kUnit * values[0]) {
      for (int64_t i = 0; i < a.n; ++i) u(i, j) /= values[j];
    } else {
      complete(u, j);
    }
  }
  return converged;
}

// A = V λ Vᵀ of A's upper triangle, λ ascending; A becomes V. Returns whether it converged.
inline bool eigh(const Matrix& a, double* values) {
  for (int64_t j = 0; j < a.n; ++j) {
    for (int64_t i = j + 1; i < a.n; ++i) a(i, j) = a(j, i);
  }
  // By the two-sided rotations of Jacobi 1846, until nothing is left off the diagonal.
  std::vector<double> kept(a.n * a.n);
  const Matrix v{kept.data(), a.n};
  for (int64_t i = 0; i < a.n; ++i) v(i, i) = 1;
  double scale = 0;
  for (int64_t i = 0; i < a.n * a.n; ++i) scale = std::max(scale, std::abs(a.data[i]));
  bool turned = true;
  for (int sweep = 0; turned && sweep < kSweeps; ++sweep) {
    turned = false;
    for (int64_t p = 0; p < a.n; ++p) {
      for (int64_t q = p + 1; q < a.n; ++q) {
        if (std::abs(a(p, q)) <= kUnit * scale / 64) continue;
        turned = true;
        const double zeta = (a(q, q) - a(p, p)) / (2 * a(p, q));
        const double t = std::copysign(1 / (std::abs(zeta) + std::hypot(zeta, 1)), zeta);
        const double c = 1 / std::hypot(t, 1), s = c * t;
        rotate(a, p, q, c, s);
        for (int64_t i = 0; i < a.n; ++i) {
          const double x = a(p, i), y = a(q, i);
          a(p, i) = c * x - s * y;
          a(q, i) = s * x + c * y;
        }
        a(p, q) = a(q, p) = 0;  // but for rounding, which would be turned forever
        rotate(v, p, q, c, s);
      }
    }
  }
  std::vector<int64_t> order(a.n);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](int64_t i, int64_t j) { return a(i, i) < a(j, j); });
  for (int64_t j = 0; j < a.n; ++j) values[j] = a(order[j], order[j]);
  permute(v, order);
  std::copy(kept.begin(), kept.end(), a.data);
  return !turned;
}

}  // namespace lapack
