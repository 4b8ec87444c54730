// Householder's reflections and triangular systems on the CPU: matrices lie column by column, and
// columns are combined, eight elements at a time.
//
// A sum of products is eight sums, of every eighth product each, folded by halves: lane l takes
// lane l + 4, then l + 2, then l + 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/common/macros.h"

namespace fusedstep::cpu {

constexpr int kLane = 8;      // doubles of the widest register
constexpr int kTogether = 4;  // columns that one reflection meets, or lanes of one in registers
constexpr int kBlock = kTogether * kLane;  // rows that are combined at once

typedef double Lane __attribute__((vector_size(kLane * sizeof(double))));

FUSEDSTEP_HD int rounded_to_lanes(int n) { return (n + kLane - 1) / kLane * kLane; }

FUSEDSTEP_HD Lane load(const double* from) {
  Lane lane;
  memcpy(&lane, from, sizeof(lane));
  return lane;
}

FUSEDSTEP_HD void store(double* to, Lane lane) { memcpy(to, &lane, sizeof(lane)); }

FUSEDSTEP_HD double fold(Lane sum) {
  for (int half = kLane / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      sum[l] += sum[l + half];
    }
  }
  return sum[0];
}

// Columns with zeros up to whole lanes. They are an odd number of cache lines apart: a power of two
// would put a row into one set of the cache.
struct Columns {
  double* data;
  int64_t stride;

  static int64_t stride_of(int rows) { return rounded_to_lanes(rows) | kLane; }
  FUSEDSTEP_HD double* operator[](int j) const { return data + j * stride; }
};

FUSEDSTEP_HD double dot(const double* a, const double* b, int begin, int end) {
  Lane sum = {};
  for (int i = begin; i < end; i += kLane) {
    sum += load(a + i) * load(b + i);
  }
  return fold(sum);
}

// (I - factor v vᵀ) a over each of `count` columns a, from element `top` on, where v begins. Sets
// heads[c] to element `top` and the element to 0; squares[c] become those of the rest.
template <int count>
FUSEDSTEP_HD void reflect(const double* v, double factor, int top, int rows, Columns a,
                          double* heads, double* squares) {
  const int begin = top / kLane * kLane;
  Lane sum[count] = {};
  for (int i = begin; i < rows; i += kLane) {
    const Lane along = load(v + i);
#pragma GCC unroll 4
    for (int c = 0; c < count; ++c) {
      sum[c] += along * load(a[c] + i);
    }
  }
  double along[count];
#pragma GCC unroll 4
  for (int c = 0; c < count; ++c) {
    along[c] = fold(sum[c]) * factor;
    sum[c] = Lane{};
    if (heads != nullptr) {
      heads[c] = a[c][top] - along[c] * v[top];
      a[c][top] = along[c] * v[top];
    }
  }
  for (int i = begin; i < rows; i += kLane) {
    const Lane direction = load(v + i);
#pragma GCC unroll 4
    for (int c = 0; c < count; ++c) {
      const Lane left = load(a[c] + i) - along[c] * direction;
      store(a[c] + i, left);
      if (squares != nullptr) {
        sum[c] += left * left;
      }
    }
  }
  if (squares != nullptr) {
#pragma GCC unroll 4
    for (int c = 0; c < count; ++c) {
      squares[c] = fold(sum[c]);
    }
  }
}

// The same for the columns [begin, end).
FUSEDSTEP_HD void reflect_all(const double* v, double factor, int top, int rows, Columns x,
                              int begin, int end, double* heads, double* squares) {
  const auto from = [](double* each, int c) { return each == nullptr ? nullptr : each + c; };
  int c = begin;
  for (; c + kTogether <= end; c += kTogether) {
    reflect<kTogether>(v, factor, top, rows, {x[c], x.stride}, from(heads, c), from(squares, c));
  }
  for (; c < end; ++c) {
    reflect<1>(v, factor, top, rows, {x[c], x.stride}, from(heads, c), from(squares, c));
  }
}

// The factor of v vᵀ in the reflection of which v_j is the first element; v is zero, or |v_j| >= 1.
FUSEDSTEP_HD double factor_of(double v_j) { return 1 / std::max(std::abs(v_j), 1.0); }

// A column of this length from element j on, zero above, to the v of the reflection that leaves
// only element j, which is returned.
FUSEDSTEP_HD double make_reflection(double* v, int j, int rows, double length) {
  const double diagonal = v[j] < 0 ? length : -length;
  const double inverse = length > 0 ? 1 / length : 0;
  v[j] -= diagonal;
  for (int i = j / kLane * kLane; i < rows; i += kLane) {
    store(v + i, load(v + i) * inverse);
  }
  return diagonal;
}

// What the reflections of a factorisation stop at.
struct Found {
  int rank;
  double rest;  // the sum of the squares of what is left
};

// X P = Q R + E: the rows of R to `r`, and over X the vectors of the reflections I - v vᵀ / |v_j|
// whose product is Q, with zeros above v_j. order[j] becomes the column of X that became the j-th,
// the first of the longest if it is more than twice as long as the next. `ends(j, rest)` says
// whether the factorisation ends before column j, where the squares of what is left add up to rest.
template <typename Ends>
FUSEDSTEP_HD Found factorise(int rows, int columns, Columns x, Columns r, double* squares,
                             int* order, const Ends& ends) {
  for (int j = 0; j < columns; ++j) {
    order[j] = j;
  }
  for (int j = 0; j < columns; ++j) {
    double rest = 0, most = 4 * squares[j];
    int pivot = j;
    for (int c = j; c < columns; ++c) {
      rest += squares[c];
      pivot = squares[c] > most ? c : pivot;
      most = std::max(most, squares[c]);
    }
    if (ends(j, rest)) {
      return {j, rest};
    }
    if (pivot != j) {
      std::swap_ranges(x[j], x[j] + rounded_to_lanes(rows), x[pivot]);
      for (int i = 0; i < j; ++i) {
        std::swap(r[i][j], r[i][pivot]);
      }
      std::swap(squares[j], squares[pivot]);
      std::swap(order[j], order[pivot]);
    }
    double* const v = x[j];
    const double length = std::sqrt(squares[j]);
    r[j][j] = make_reflection(v, j, rows, length);
    reflect_all(v, factor_of(v[j]), j, rows, x, j + 1, columns, r[j], squares);
  }
  return {columns, 0};
}

// X = Q R likewise, of all columns in their order.
FUSEDSTEP_HD void factorise_in_order(int rows, int columns, Columns x, Columns r) {
  for (int j = 0; j < columns; ++j) {
    double* const v = x[j];
    const double length = std::sqrt(dot(v, v, j / kLane * kLane, rows));
    r[j][j] = make_reflection(v, j, rows, length);
    reflect_all(v, factor_of(v[j]), j, rows, x, j + 1, columns, r[j], nullptr);
  }
}

// Q over the vectors of its reflections.
FUSEDSTEP_HD void form_q(int rows, int columns, Columns x) {
  for (int j = columns - 1; j >= 0; --j) {
    double* const v = x[j];
    reflect_all(v, factor_of(v[j]), j, rows, x, j + 1, columns, nullptr, nullptr);
    const double sign = v[j] < 0 ? -1 : 1;
    for (int i = j / kLane * kLane; i < rows; i += kLane) {
      store(v + i, load(v + i) * -sign);
    }
    v[j] += 1;
  }
}

// out + sign * the sum over n of factors[n] times column(n), over out, from row `begin` on.
template <int sign, typename Column>
FUSEDSTEP_HD void add_columns(int begin, int rows, int count, const double* factors,
                              const Column& column, double* out) {
  int i = begin;
  for (; i + kBlock <= rows; i += kBlock) {
    Lane sum[kTogether] = {};
    for (int n = 0; n < count; ++n) {
      const double* const from = column(n) + i;
#pragma GCC unroll 4
      for (int l = 0; l < kTogether; ++l) {
        sum[l] += factors[n] * load(from + l * kLane);
      }
    }
#pragma GCC unroll 4
    for (int l = 0; l < kTogether; ++l) {
      store(out + i + l * kLane, load(out + i + l * kLane) + sign * sum[l]);
    }
  }
  for (; i < rows; i += kLane) {
    Lane sum = {};
    for (int n = 0; n < count; ++n) {
      sum += factors[n] * load(column(n) + i);
    }
    store(out + i, load(out + i) + sign * sum);
  }
}

// Column j of Q R⁻ᵀ over that of Q, from row `begin` on; those after it are there.
FUSEDSTEP_HD void finish_column(int begin, int rows, int j, int columns, Columns x, Columns r) {
  add_columns<-1>(
      begin, rows, columns - 1 - j, r[j] + j + 1, [&](int n) { return x[j + 1 + n]; }, x[j]);
  const double inverse = 1 / r[j][j];
  for (int i = begin; i < rows; i += kLane) {
    store(x[j] + i, load(x[j] + i) * inverse);
  }
}

// Q R⁻ᵀ over Q; the sum of its squares. By blocks of rows, which the first cache holds.
FUSEDSTEP_HD double solve_rows(int rows, int columns, Columns x, Columns r) {
  double square = 0;
  for (int begin = 0; begin < rows; begin += kBlock) {
    const int end = std::min(begin + kBlock, rows);
    for (int j = columns - 1; j >= 0; --j) {
      finish_column(begin, end, j, columns, x, r);
      square += dot(x[j], x[j], begin, end);
    }
  }
  return square;
}

// R⁻ᵀ to `inverse`; the sum of its squares.
FUSEDSTEP_HD double invert_transposed(int columns, Columns r, Columns inverse) {
  const int rows = rounded_to_lanes(columns);
  double square = 0;
  for (int j = columns - 1; j >= 0; --j) {
    std::fill_n(inverse[j], rows, 0.0);
    inverse[j][j] = 1;
    const int begin = j / kLane * kLane;
    finish_column(begin, rows, j, columns, inverse, r);
    square += dot(inverse[j], inverse[j], begin, rows);
  }
  return square;
}

// R⁻¹ b over b, whose elements beyond R are zero.
FUSEDSTEP_HD void solve_backward(int columns, Columns r, double* b) {
  for (int j = columns - 1; j >= 0; --j) {
    const double right = b[j];
    b[j] = 0;
    b[j] = (right - dot(r[j], b, j / kLane * kLane, rounded_to_lanes(columns))) / r[j][j];
  }
}

// R⁻ᵀ b likewise.
FUSEDSTEP_HD void solve_forward(int columns, Columns r, double* b) {
  for (int j = 0; j < columns; ++j) {
    const double solved = b[j] / r[j][j];
    for (int i = j / kLane * kLane; i < rounded_to_lanes(columns); i += kLane) {
      store(b + i, load(b + i) - solved * load(r[j] + i));
    }
    b[j] = solved;
  }
}

}  // namespace fusedstep::cpu
