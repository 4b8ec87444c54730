// The pseudo-inverse of a small matrix on the CPU, from reading it to writing its inverse.
#include "kernels/linalg/small_pinv.h"

#include <algorithm>
#include <memory>
#include <new>

#include "kernels/linalg/gram.h"
#include "kernels/linalg/reflections.h"

namespace fusedstep::cpu {
namespace {

// The memory in which one matrix is inverted: X and a copy of it, R and T by rows, which are zero
// at first, as what else there is.
class Workspace {
 public:
  Workspace(int rows, int columns)
      : of_rows_(Columns::stride_of(rows)),
        of_columns_(Columns::stride_of(columns)),
        columns_(columns),
        memory_(
            new(kAlign) double[(columns_ + spare()) * of_rows_ + (2 * columns_ + 2) * of_columns_],
            kFree),
        order_(new int[columns]) {
    std::fill(r()[0], factors() + of_columns_, 0.0);
  }

  Columns x() const { return {memory_.get(), of_rows_}; }
  Columns copy() const { return {x()[columns_], of_rows_}; }
  Columns r() const { return {copy()[spare()], of_columns_}; }
  Columns t() const { return {r()[columns_], of_columns_}; }
  double* squares() const { return t()[columns_]; }
  double* factors() const { return squares() + of_columns_; }
  int* order() const { return order_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  static constexpr auto kFree = [](double* p) { ::operator delete[](p, kAlign); };

  int spare() const { return std::max(columns_, kTogether); }  // columns of the copy

  int64_t of_rows_, of_columns_;
  int columns_;
  std::unique_ptr<double[], decltype(kFree)> memory_;
  std::unique_ptr<int[]> order_;
};

// X, or Xᵀ of a wide A, times the power of two that brings its largest element near 1, to x and its
// copy; squares[j] become those of its columns' lengths.
template <typename Storage>
FUSEDSTEP_HD tiny::Facts<double> load_matrix(const TinyPinv& p, int64_t matrix,
                                             const Workspace& work) {
  const tiny::Shape shape(p);
  const Columns x = work.x(), copy = work.copy();
  const Storage* const A = static_cast<const Storage*>(p.A) + matrix * shape.size;
  if (shape.wide) {
    for (int j = 0; j < shape.k; ++j) {
      std::copy_n(A + j * p.columns, p.columns, x[j]);
    }
  } else {
    for (int i = 0; i < p.rows; i += kLane) {
      for (int j = 0; j < p.columns; ++j) {
        for (int l = 0; l < std::min(kLane, p.rows - i); ++l) {
          x[j][i + l] = A[(i + l) * p.columns + j];
        }
      }
    }
  }
  Lane most = {}, wrong = {};
  for (int j = 0; j < shape.k; ++j) {
    std::fill(x[j] + shape.long_side, x[j] + rounded_to_lanes(shape.long_side), 0.0);
    for (int i = 0; i < shape.long_side; i += kLane) {
      const Lane value = load(x[j] + i), size = value < 0 ? -value : value;
      wrong += value - value;
      most = size > most ? size : most;
    }
  }
  double largest = 0;
  for (int l = 0; l < kLane; ++l) {
    largest = std::max(largest, most[l]);
  }
  const bool finite = fold(wrong) == 0;
  const double scale = tiny::inverse_power(finite ? largest : 1.0);
  double square = 0;
  for (int j = 0; j < shape.k; ++j) {
    Lane sum = {};
    for (int i = 0; i < shape.long_side; i += kLane) {
      const Lane value = load(x[j] + i) * scale;
      store(x[j] + i, value);
      store(copy[j] + i, value);
      sum += value * value;
    }
    work.squares()[j] = fold(sum);
    square += work.squares()[j];
  }
  return {finite, scale, square};
}

// left Vᵀ over the copy of X, by way of T's memory.
FUSEDSTEP_HD void turn_back(int rows, int columns, int rank, Columns left, Columns v,
                            const Workspace& work) {
  const Columns result = work.copy(), of_row = work.t();
  for (int n = 0; n < rank; ++n) {
    for (int j = 0; j < columns; ++j) {
      of_row[j][n] = v[n][j];
    }
  }
  for (int begin = 0; begin < rows; begin += kBlock) {
    const int end = std::min(begin + kBlock, rows);
    for (int j = 0; j < columns; ++j) {
      std::fill(result[j] + begin, result[j] + end, 0.0);
      add_columns<1>(begin, end, rank, of_row[j], [&](int n) { return left[n]; }, result[j]);
    }
  }
}

// A⁺ from X⁺ᵀ P.
template <typename Storage>
FUSEDSTEP_HD void store_inverse(const TinyPinv& p, int64_t matrix, double scale, Columns inverse,
                                const int* order) {
  const tiny::Shape shape(p);
  Storage* const out = static_cast<Storage*>(p.result) + matrix * shape.size;
  const auto value = [&](int i, int j) {
    return tiny::rounded<Storage>(inverse[j][i] * scale + 0.0);  // no zero is negative
  };
  for (int begin = 0; begin < shape.long_side; begin += kLane) {
    const int end = std::min(begin + kLane, shape.long_side);
    for (int j = 0; j < shape.k; ++j) {
      for (int i = begin; i < end; ++i) {
        out[shape.place_in_inverse(order[j], i)] = value(i, j);
      }
    }
  }
}

template <typename Storage>
FUSEDSTEP_HD void fill(const TinyPinv& p, int64_t matrix, Storage value) {
  const int64_t size = p.columns * (p.B != nullptr ? p.right_sides : p.rows);
  std::fill_n(static_cast<Storage*>(p.result) + matrix * size, size, value);
}

// A⁺ B by the reflections in x and the triangle r, some columns of B at a time, over the copy of X.
template <typename Storage>
FUSEDSTEP_HD void store_solution(const TinyPinv& p, int64_t matrix, double scale, int rank,
                                 Columns r, const Columns* v, const Workspace& work) {
  const tiny::Shape shape(p);
  const int rows = rounded_to_lanes(shape.long_side), k = rounded_to_lanes(shape.k);
  const auto* const B = static_cast<const Storage*>(p.B) + matrix * p.rows * p.right_sides;
  auto* const out = static_cast<Storage*>(p.result) + matrix * p.columns * p.right_sides;
  const Columns x = work.x(), b = work.copy();
  double* const room = work.factors();
  const int* const order = work.order();
  for (int begin = 0; begin < p.right_sides; begin += kTogether) {
    const int count = std::min(kTogether, p.right_sides - begin);
    const auto reflect_by = [&](int j) {
      reflect_all(x[j], factor_of(x[j][j]), j, rows, b, 0, count, nullptr, nullptr);
    };
    const auto put = [&](int row, int c, double value) {
      out[row * p.right_sides + begin + c] = tiny::rounded<Storage>(value * scale + 0.0);
    };
    for (int c = 0; c < count; ++c) {
      const auto given = [&](int row) { return B[row * p.right_sides + begin + c]; };
      std::fill_n(b[c], rows, 0.0);
      if (shape.wide) {  // R⁻ᵀ (P V)ᵀ b
        double* const ordered = v != nullptr ? room : b[c];
        std::fill_n(ordered, k, 0.0);
        for (int j = 0; j < shape.k; ++j) {
          ordered[j] = given(order[j]);
        }
        for (int n = 0; v != nullptr && n < rank; ++n) {
          b[c][n] = dot((*v)[n], ordered, 0, k);
        }
        solve_forward(rank, r, b[c]);
      } else {
        for (int i = 0; i < p.rows; ++i) {
          b[c][i] = given(i);
        }
      }
    }
    for (int n = 0; n < rank; ++n) {
      reflect_by(shape.wide ? rank - 1 - n : n);
    }
    for (int c = 0; c < count; ++c) {
      if (shape.wide) {
        for (int i = 0; i < p.columns; ++i) {
          put(i, c, b[c][i]);
        }
        continue;
      }
      const double* solved = b[c];  // P V R⁻¹ b
      std::fill(b[c] + rank, b[c] + rounded_to_lanes(rank), 0.0);
      solve_backward(rank, r, b[c]);
      if (v != nullptr) {
        std::fill_n(room, k, 0.0);
        add_columns<1>(0, k, rank, b[c], [&](int n) { return (*v)[n]; }, room);
        solved = room;
      }
      for (int j = 0; j < shape.k; ++j) {
        put(order[j], c, solved[j]);
      }
    }
  }
}

template <typename Storage>
FUSEDSTEP_CLONES bool invert(const TinyPinv& p, int64_t matrix, const Workspace& work) {
  const tiny::Shape shape(p);
  const int rows = rounded_to_lanes(shape.long_side), k = shape.k;
  const Columns x = work.x(), copy = work.copy(), r = work.r(), t = work.t();
  const tiny::Facts<double> facts = load_matrix<Storage>(p, matrix, work);
  if (!facts.finite) {
    fill<Storage>(p, matrix, tiny::kNan<Storage>);
    return true;
  }
  const auto threshold = [&](double largest) {
    return nan_max(p.atol.all * facts.scale, p.rtol.all * largest);
  };
  double limit = threshold(0);
  const Found found =
      factorise(rows, k, x, r, work.squares(), work.order(), [&](int j, double rest) {
        if (j == 1) {
          limit = threshold(std::sqrt(dot(r[0], r[0], 0, rounded_to_lanes(k))));
        }
        return std::sqrt(rest * (1 + 64 * tiny::kUnit)) <= limit;
      });
  if (found.rank == 0) {
    fill<Storage>(p, matrix, 0);
    return true;
  }
  const bool full = found.rank == k;
  const Columns triangle = full ? r : t;
  const Columns* const v = full ? nullptr : &r;
  if (!full) {  // the rows of R are the columns of Rᵀ
    const int width = rounded_to_lanes(k);
    factorise_in_order(width, found.rank, r, t);
    form_q(width, found.rank, r);
    const auto column = [&](int n) { return copy[work.order()[n]]; };
    for (int begin = 0; begin < rows; begin += kBlock) {
      const int end = std::min(begin + kBlock, rows);
      for (int j = 0; j < found.rank; ++j) {
        std::fill(x[j] + begin, x[j] + end, 0.0);
        add_columns<1>(begin, end, k, r[j], column, x[j]);
      }
    }
    factorise_in_order(rows, found.rank, x, t);
  }
  double square;  // |X⁺|_F²
  if (p.B != nullptr) {
    square = invert_transposed(found.rank, triangle, copy);
  } else {
    form_q(rows, found.rank, x);
    square = solve_rows(rows, found.rank, x, triangle);
  }
  const double largest = std::sqrt(facts.square);
  const double smallest = 1 / std::sqrt(square) - gram_error(shape.long_side, k) * largest;
  constexpr double kNeglected = sizeof(Storage) == 8 ? tiny::kUnit : 0x1p-30;
  if (!(smallest > threshold(largest) * (1 + 32 * tiny::kUnit) &&
        found.rest * square <= kNeglected)) {
    return false;
  }
  if (p.B != nullptr) {
    store_solution<Storage>(p, matrix, facts.scale, found.rank, triangle, v, work);
  } else {
    if (!full) {
      turn_back(rows, k, found.rank, x, r, work);
    }
    store_inverse<Storage>(p, matrix, facts.scale, full ? x : copy, work.order());
  }
  return true;
}

}  // namespace

bool small_pinv(const TinyPinv& p, int64_t matrix) {
  const tiny::Shape shape(p);
  const Workspace work(shape.long_side, shape.k);
  return p.dtype == Dtype::kFloat64 ? invert<double>(p, matrix, work)
                                    : invert<float>(p, matrix, work);
}

}  // namespace fusedstep::cpu
