// Ranks and row spaces on the CPU: rows of length k are combined, eight at a time where they can.
#include "kernels/linalg/row_space.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace fusedstep::cpu {
namespace {

constexpr int kLane = 8;          // doubles of the widest register
constexpr int kTileRows = 8;      // of a result in registers
constexpr int kTileColumns = 16;  // two registers of each row
constexpr int64_t kBlock = 64;    // pivots after which the Schur complement is written

typedef double Lane __attribute__((vector_size(kLane * sizeof(double))));

int64_t round_up(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// A matrix row by row, with room and zeros behind it for whole tiles. Rows are an odd number of
// cache lines apart: a power of two would put a column into one set of the cache.
class Rows {
 public:
  Rows(int64_t rows, int64_t columns)
      : stride_(round_up(columns, kTileColumns) + kLane),
        data_((round_up(rows, kTileRows) + 1) * stride_ + kLane) {}

  double* operator[](int64_t row) { return data_.data() + row * stride_; }
  const double* operator[](int64_t row) const { return data_.data() + row * stride_; }
  int64_t stride() const { return stride_; }

 private:
  int64_t stride_;
  std::vector<double> data_;
};

// Eight rows of `a`, each element of which is one factor.
struct Factors {
  const double* data;
  int64_t next, row;  // how far the next factor, and that of the next row, is
};

// out[i][j] -= the sum over n of a[i][n] b[n][j].
FUSEDSTEP_FUSED FUSEDSTEP_CLONES void subtract_tile(Factors a, const double* b, int64_t stride,
                                                    int64_t count, double* out,
                                                    int64_t out_stride) {
  Lane sum[kTileRows][2] = {};
  for (int64_t n = 0; n < count; ++n, a.data += a.next, b += stride) {
    Lane left, right;
    memcpy(&left, b, sizeof(left));
    memcpy(&right, b + kLane, sizeof(right));
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      sum[i][0] += a.data[i * a.row] * left;
      sum[i][1] += a.data[i * a.row] * right;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int l = 0; l < 2; ++l) {
      Lane old;
      memcpy(&old, out + i * out_stride + l * kLane, sizeof(old));
      old -= sum[i][l];
      memcpy(out + i * out_stride + l * kLane, &old, sizeof(old));
    }
  }
}

// out[j] -= the sum over n of factors[n] b[n][j]; `width` is a multiple of a tile's.
FUSEDSTEP_FUSED FUSEDSTEP_CLONES void subtract_row(const double* factors, const double* b,
                                                   int64_t stride, int64_t count, int64_t width,
                                                   double* out) {
  for (int64_t j = 0; j < width; j += kTileColumns) {
    Lane sum[4] = {};  // of even and odd n, so that additions need not wait for one another
    const double* from = b + j;
    int64_t n = 0;
    for (; n + 1 < count; n += 2, from += 2 * stride) {
      Lane row[4];
      memcpy(&row[0], from, 2 * sizeof(Lane));
      memcpy(&row[2], from + stride, 2 * sizeof(Lane));
      sum[0] += factors[n] * row[0];
      sum[1] += factors[n] * row[1];
      sum[2] += factors[n + 1] * row[2];
      sum[3] += factors[n + 1] * row[3];
    }
    if (n < count) {
      Lane row[2];
      memcpy(&row[0], from, 2 * sizeof(Lane));
      sum[0] += factors[n] * row[0];
      sum[1] += factors[n] * row[1];
    }
    for (int l = 0; l < 2; ++l) {
      Lane old;
      memcpy(&old, out + j + l * kLane, sizeof(old));
      old -= sum[l] + sum[l + 2];
      memcpy(out + j + l * kLane, &old, sizeof(old));
    }
  }
}

// Eight rows of a tile, of which the n-th still lacks those before it in the tile, over the
// diagonal: `u` is the square of U on that diagonal.
FUSEDSTEP_FUSED FUSEDSTEP_CLONES void finish_forward(const double* u, int64_t u_stride,
                                                     int64_t rows, double* z, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    Lane row[2];
    memcpy(&row[0], z + i * stride, sizeof(row));
    for (int64_t n = 0; n < i; ++n) {
      Lane other[2];
      memcpy(&other[0], z + n * stride, sizeof(other));
      row[0] -= u[n * u_stride + i] * other[0];
      row[1] -= u[n * u_stride + i] * other[1];
    }
    const double inverse = 1 / u[i * u_stride + i];
    row[0] *= inverse;
    row[1] *= inverse;
    memcpy(z + i * stride, &row[0], sizeof(row));
  }
}

FUSEDSTEP_FUSED FUSEDSTEP_CLONES void finish_backward(const double* u, int64_t u_stride,
                                                      int64_t rows, double* z, int64_t stride) {
  for (int64_t i = rows - 1; i >= 0; --i) {
    Lane row[2];
    memcpy(&row[0], z + i * stride, sizeof(row));
    for (int64_t n = i + 1; n < rows; ++n) {
      Lane other[2];
      memcpy(&other[0], z + n * stride, sizeof(other));
      row[0] -= u[i * u_stride + n] * other[0];
      row[1] -= u[i * u_stride + n] * other[1];
    }
    const double inverse = 1 / u[i * u_stride + i];
    row[0] *= inverse;
    row[1] *= inverse;
    memcpy(z + i * stride, &row[0], sizeof(row));
  }
}

// Z becomes U⁻ᵀ Z, for upper triangular U [rank, rank] and the columns [begin, end) of Z.
void solve_forward(const Rows& U, int64_t rank, Rows& Z, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += kTileColumns) {
    for (int64_t i = 0; i < rank; i += kTileRows) {
      double* const out = Z[i] + column;
      subtract_tile({U[0] + i, U.stride(), 1}, Z[0] + column, Z.stride(), i, out, Z.stride());
      finish_forward(U[i] + i, U.stride(), std::min<int64_t>(kTileRows, rank - i), out, Z.stride());
    }
  }
}

// Z becomes U⁻¹ Z.
void solve_backward(const Rows& U, int64_t rank, Rows& Z, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += kTileColumns) {
    for (int64_t i = (rank - 1) / kTileRows * kTileRows; i >= 0; i -= kTileRows) {
      double* const out = Z[i] + column;
      const int64_t after = std::min(rank, i + kTileRows);
      subtract_tile({U[i] + after, 1, U.stride()}, Z[after] + column, Z.stride(), rank - after, out,
                    Z.stride());
      finish_backward(U[i] + i, U.stride(), after - i, out, Z.stride());
    }
  }
}

// The square [rank, rank] becomes U with S = UᵀU; what is below the diagonal is not to be read.
FUSEDSTEP_FUSED FUSEDSTEP_CLONES void finish_factor(double* s, int64_t stride, int64_t rows,
                                                    int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    double* const row = s + i * stride;
    const double inverse = 1 / std::sqrt(row[i]);
    for (int64_t j = i; j < width; ++j) {
      row[j] *= inverse;
    }
    for (int64_t n = i + 1; n < rows; ++n) {
      double* const other = s + n * stride;
      const double factor = row[n];
      for (int64_t j = n; j < width; ++j) {
        other[j] -= factor * row[j];
      }
    }
  }
}

void factor(Rows& S, int64_t rank) {
  for (int64_t i = 0; i < rank; i += kTileRows) {
    for (int64_t column = i; column < rank; column += kTileColumns) {
      subtract_tile({S[0] + i, S.stride(), 1}, S[0] + column, S.stride(), i, S[i] + column,
                    S.stride());
    }
    finish_factor(S[i] + i, S.stride(), std::min<int64_t>(kTileRows, rank - i), rank - i);
  }
}

FUSEDSTEP_CLONES double sum_of_squares(const double* x, int64_t count) {
  Lane sum = {};
  for (; count >= kLane; count -= kLane, x += kLane) {
    Lane lane;
    memcpy(&lane, x, sizeof(lane));
    sum += lane * lane;
  }
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += x[i] * x[i];
  }
  for (int l = 0; l < kLane; ++l) {
    total += sum[l];
  }
  return total;
}

// What is left on the diagonal: its largest element, and its sum.
struct Left {
  double largest, trace;
};

FUSEDSTEP_CLONES Left look(const double* diagonal, int64_t padded) {
  Lane largest = {}, trace = {};
  for (int64_t i = 0; i < padded; i += kLane) {
    Lane lane;
    memcpy(&lane, diagonal + i, sizeof(lane));
    lane = lane > 0 ? lane : Lane{};
    trace += lane;
    largest = lane > largest ? lane : largest;
  }
  Left left{0, 0};
  for (int l = 0; l < kLane; ++l) {
    left.largest = std::max(left.largest, largest[l]);
    left.trace += trace[l];
  }
  return left;
}

// The new row over the root of its pivot, and its squares off the diagonal.
FUSEDSTEP_FUSED FUSEDSTEP_CLONES void scale_row(double inverse, int64_t padded, double* row,
                                                double* diagonal) {
  for (int64_t i = 0; i < padded; ++i) {
    row[i] *= inverse;
    diagonal[i] -= row[i] * row[i];
  }
}

// The upper triangle of A Aᵀ, for the first `rank` rows of A, of length k.
Rows products_of_rows(const Rows& A, int64_t rank, int64_t k, const Shares& shares) {
  Rows columns(k, rank), S(rank, rank);
  for (int64_t i = 0; i < rank; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      columns[j][i] = A[i][j];
    }
  }
  shares((rank + kTileRows - 1) / kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kTileRows; i < std::min(end * kTileRows, rank); i += kTileRows) {
      for (int64_t j = i; j < rank; j += kTileColumns) {
        subtract_tile({columns[0] + i, columns.stride(), 1}, columns[0] + j, columns.stride(), k,
                      S[i] + j, S.stride());
      }
      for (int64_t n = i; n < std::min(i + kTileRows, rank); ++n) {
        std::transform(S[n] + n, S[n] + rank, S[n] + n, std::negate<>());
      }
    }
  });
  return S;
}

class RowSpace {
 public:
  RowSpace(const RowSpaces& s, int64_t matrix, const Shares& shares)
      : s_(s),
        matrix_(matrix),
        k_(s.width),
        shares_(shares),
        gram_(s.gram + matrix * k_ * k_),
        R_(k_, k_),
        diagonal_(round_up(k_, kTileColumns), -1) {}

  void find() {
    double trace = 0, squares = 0;
    for (int64_t i = 0; i < k_; ++i) {
      diagonal_[i] = gram_[i * k_ + i];
      trace += diagonal_[i];
      squares += 2 * sum_of_squares(gram_ + i * k_, i) + diagonal_[i] * diagonal_[i];
    }
    bounds_ = bounds_of(s_, matrix_, trace, squares);
    const double left = is_finite(squares) ? factorise() : 0;
    Rest rest{left, left, 0};
    double* const out = s_.inverses + matrix_ * k_ * k_;
    const int64_t known = s_.guess && rank() == k_ ? 0 : rank();
    if (known > 0) {
      const Rows W = known == k_ ? inverse_of_all() : inverse_of_some();
      for (int64_t i = 0; i < known; ++i) {
        rest.inverse_norm += sum_of_squares(W[i], k_);
        std::copy_n(W[i], k_, out + i * k_);
      }
      sharpen(W, rest);
    }
    std::fill(out + known * k_, out + k_ * k_, 0);
    conclude(s_, matrix_, bounds_, rank(), rest);
  }

 private:
  int64_t rank() const { return static_cast<int64_t>(pivots_.size()); }

  // Finds pivots and rows of R until what is left counts as zero, or is but noise. Returns its sum.
  double factorise() {
    const int64_t padded = static_cast<int64_t>(diagonal_.size());
    // A smaller pivot's singular value can not be told from zero.
    const double noise = bounds_.error / static_cast<double>(k_);
    double factors[kBlock];
    for (;;) {
      const Left left = look(diagonal_.data(), padded);
      if (rank() == k_ || left.trace <= bounds_.discarded || !(left.largest > noise)) {
        return left.trace;
      }
      if (rank() - begin_ == kBlock) {
        subtract_block();
      }
      const int64_t at = rank(),
                    pivot = std::find(diagonal_.begin(), diagonal_.end(), left.largest) -
                            diagonal_.begin();
      double* const row = R_[at];
      std::copy_n(gram_ + pivot * k_, pivot + 1, row);
      for (int64_t i = pivot + 1; i < k_; ++i) {
        row[i] = gram_[i * k_ + pivot];
      }
      for (int64_t n = begin_; n < at; ++n) {
        factors[n - begin_] = R_[n][pivot];
      }
      subtract_row(factors, R_[begin_], R_.stride(), at - begin_, padded, row);
      for (int64_t other : pivots_) {
        row[other] = 0;
      }
      if (!(row[pivot] > 0)) {
        std::fill_n(row, padded, 0);
        return left.trace;
      }
      const double root = std::sqrt(row[pivot]);
      scale_row(1 / root, padded, row, diagonal_.data());
      row[pivot] = root;
      diagonal_[pivot] = -std::numeric_limits<double>::infinity();
      pivots_.push_back(pivot);
    }
  }

  // Takes the products of the rows of R since `begin_` from a copy of G, on and below the diagonal.
  void subtract_block() {
    if (schur_.empty()) {
      schur_.assign(gram_, gram_ + k_ * k_);
      gram_ = schur_.data();
    }
    const int64_t count = rank() - begin_;
    shares_((k_ + kTileRows - 1) / kTileRows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kTileRows; i < std::min(end * kTileRows, k_); i += kTileRows) {
        for (int64_t j = 0; j < std::min(k_, i + kTileRows); j += kTileColumns) {
          double tile[kTileRows * kTileColumns] = {};
          subtract_tile({R_[begin_] + i, R_.stride(), 1}, R_[begin_] + j, R_.stride(), count, tile,
                        kTileColumns);
          for (int64_t a = 0; a < std::min<int64_t>(kTileRows, k_ - i); ++a) {
            double* const to = schur_.data() + (i + a) * k_ + j;
            for (int64_t b = 0; b < std::min<int64_t>(kTileColumns, k_ - j); ++b) {
              to[b] += tile[a * kTileColumns + b];
            }
          }
        }
      }
    });
    begin_ = rank();
  }

  // Better bounds, where the cheap ones prove nothing.
  void sharpen(const Rows& W, Rest& rest) {
    const double smallest = 1 / rest.inverse_norm - bounds_.error;
    const bool separate = rank() == k_ || rest.left_norm <= kRowSpaceAngle * smallest;
    if (s_.guess || (separate && smallest > bounds_.kept)) {
      return;
    }
    const double norm = norm_of_products(W, rank());
    rest.inverse_norm = std::min(rest.inverse_norm, norm);
    if (!(1 / norm - bounds_.error > bounds_.kept)) {
      Rows G(k_, k_);
      for (int64_t i = 0; i < k_; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          G[i][j] = G[j][i] = s_.gram[(matrix_ * k_ + i) * k_ + j];
        }
      }
      const double most = std::sqrt(norm_of_products(G, k_));
      bounds_.most = std::min(bounds_.most, most * kBoundSlack);
      bounds_.kept = std::min(bounds_.kept, kept_above(s_, matrix_, most));
    }
    if (rank() < k_) {
      subtract_block();
      double squares = 0;
      for (int64_t i = 0; i < k_; ++i) {
        squares += 2 * sum_of_squares(gram_ + i * k_, i) + gram_[i * k_ + i] * gram_[i * k_ + i];
      }
      rest.left_norm = std::min(rest.left_norm, std::sqrt(squares));
    }
  }

  // |A Aᵀ|_F, for the first `count` rows of A.
  double norm_of_products(const Rows& A, int64_t count) const {
    const Rows products = products_of_rows(A, count, k_, shares_);
    double squares = 0;
    for (int64_t i = 0; i < count; ++i) {
      squares += 2 * sum_of_squares(products[i] + i + 1, count - i - 1);
      squares += products[i][i] * products[i][i];
    }
    return std::sqrt(squares);
  }

  // Rᵀ⁻¹: with its columns in the order of the pivots R is upper triangular.
  Rows inverse_of_all() const {
    Rows U(k_, k_), W(k_, k_);
    for (int64_t n = 0; n < k_; ++n) {
      for (int64_t i = n; i < k_; ++i) {
        U[n][i] = R_[n][pivots_[i]];
      }
      W[n][pivots_[n]] = 1;
    }
    on_columns([&](int64_t begin, int64_t end) { solve_forward(U, k_, W, begin, end); });
    return W;
  }

  // (RRᵀ)⁻¹ R.
  Rows inverse_of_some() const {
    Rows S = products_of_rows(R_, rank(), k_, shares_), W(rank(), k_);
    for (int64_t i = 0; i < rank(); ++i) {
      std::copy_n(R_[i], k_, W[i]);
    }
    factor(S, rank());
    on_columns([&](int64_t begin, int64_t end) {
      solve_forward(S, rank(), W, begin, end);
      solve_backward(S, rank(), W, begin, end);
    });
    return W;
  }

  // Calls f on ranges of the k columns that begin with a tile.
  template <typename F>
  void on_columns(const F& f) const {
    shares_((k_ + kTileColumns - 1) / kTileColumns, [&](int64_t begin, int64_t end) {
      f(begin * kTileColumns, std::min(end * kTileColumns, k_));
    });
  }

  const RowSpaces& s_;
  const int64_t matrix_, k_;
  const Shares& shares_;
  const double* gram_;         // G, less the products of the rows of R before `begin_`
  std::vector<double> schur_;  // where that is not G
  int64_t begin_ = 0;
  Rows R_;                        // [rank, k], its columns in the order of X's
  std::vector<double> diagonal_;  // of the Schur complement; -inf where there was a pivot
  std::vector<int64_t> pivots_;
  GramBounds bounds_{};
};

}  // namespace

void find_row_space(const RowSpaces& s, int64_t matrix, const Shares& shares) {
  RowSpace(s, matrix, shares).find();
}

}  // namespace fusedstep::cpu
