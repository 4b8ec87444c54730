// Loss and gradient of rows of logits on the CPU: the order of kernels/lm_head/softmax.h, a chunk
// at a time in the first-level cache.
#include "kernels/lm_head/softmax.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/reduce.h"

namespace fusedstep::cpu {
namespace {

constexpr int kPair = 2 * kSoftmaxLanes;

// `pairs` of lines, as in what follows.
template <typename T>
FUSEDSTEP_CLONES T largest(const T* x, int64_t pairs) {
  alignas(64) T lanes[kPair];
  std::copy_n(x, kPair, lanes);
  for (const T* const end = x + pairs * kPair; (x += kPair) < end;) {
    for (int l = 0; l < kPair; ++l) {
      lanes[l] = larger(lanes[l], x[l]);
    }
  }
  return larger(kLowest<T>, fold_by_halves<kPair>(lanes, larger<T>));
}

// exp(x - top) over x; their sum, and that of their squares. Meanwhile `next` comes into the cache:
// what is to be copied next would otherwise be waited for.
template <typename T>
FUSEDSTEP_CLONES SoftmaxChunk sum_exponentials(T* x, int64_t pairs, T top, const T* next) {
  alignas(64) T sum[kSoftmaxLanes] = {}, squares[kSoftmaxLanes] = {};
  for (const T* const end = x + pairs * kPair; x < end; x += kPair, next += kPair) {
    for (size_t i = 0; i < kPair; i += 64 / sizeof(T)) {
      __builtin_prefetch(next + i);
    }
    for (int i = 0; i < kPair; ++i) {
      x[i] = exp_or_zero(x[i] - top);
    }
    for (int l = 0; l < kSoftmaxLanes; ++l) {
      const T a = x[l], b = x[l + kSoftmaxLanes];
      sum[l] += a + b;
      squares[l] += square_or_zero(a) + square_or_zero(b);
    }
  }
  return {.top = top,
          .sum = fold_by_halves<kSoftmaxLanes>(sum, Add()),
          .squares = fold_by_halves<kSoftmaxLanes>(squares, Add()),
          .weight = 0};
}

// x -= factors[i] * row i, for `rows` rows of n elements in order.
template <typename T>
FUSEDSTEP_CLONES void subtract_rows(T* x, int64_t n, const T* row, int64_t stride, int64_t rows,
                                    const T* factors) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4, row += 4 * stride) {  // at once, so that x is read less often
    const T *b = row + stride, *c = b + stride, *d = c + stride, *const f = factors + i;
    FUSEDSTEP_IVDEP
    for (int64_t k = 0; k < n; ++k) {
      x[k] = x[k] - f[0] * row[k] - f[1] * b[k] - f[2] * c[k] - f[3] * d[k];
    }
  }
  for (; i < rows; ++i, row += stride) {
    FUSEDSTEP_IVDEP
    for (int64_t k = 0; k < n; ++k) {
      x[k] -= factors[i] * row[k];
    }
  }
}

template <typename T>
FUSEDSTEP_CLONES void scale(T* x, int64_t n, const Weight<T>& weight) {
  for (int64_t k = 0; k < n; ++k) {
    x[k] = weight * x[k];
  }
}

// Part of a row.
template <typename T>
struct Part {
  T* logits;
  int64_t count, token;  // token: its place, if that is here

  Part(const Softmax& s, int64_t row, int64_t chunk)
      : logits(static_cast<T*>(s.logits) + row * s.stride + chunk * kSoftmaxChunk),
        count(std::min(kSoftmaxChunk, s.classes - chunk * kSoftmaxChunk)),
        token(s.tokens[row] - chunk * kSoftmaxChunk) {}
  bool has_token() const { return token >= 0 && token < count; }
};

template <typename T>
SoftmaxChunk sum_chunk(const Softmax& s, int64_t row, int64_t chunk) {
  const Part<T> part(s, row, chunk);
  alignas(64) T x[kSoftmaxChunk];
  std::copy_n(part.logits, part.count, x);
  if (const RootStep& root = s.root; root.gram != nullptr) {
    subtract_rows(x, part.count, part.logits - row * s.stride, s.stride, row,
                  static_cast<const T*>(root.gram) + row * root.gram_stride);
  }
  const int64_t pairs = (part.count + kPair - 1) / kPair;
  std::fill(x + part.count, x + pairs * kPair, -HUGE_VAL);
  T logit = 0;
  if (part.has_token()) {
    std::swap(logit = -HUGE_VAL, x[part.token]);
  }
  const SoftmaxChunk sums =
      sum_exponentials(x, pairs, largest(x, pairs), part.logits + kSoftmaxChunk);
  if (s.writes) {
    std::copy_n(x, part.count, part.logits);
    if (part.has_token()) {
      part.logits[part.token] = logit;
    }
  }
  return sums;
}

template <typename T>
void fold(const Softmax& s, int64_t row, SoftmaxChunk* chunks, int64_t count) {
  double top = kLowest<T>, rest[kChunkLanes] = {}, squares[kChunkLanes] = {};
  for (int64_t c = 0; c < count; ++c) {
    top = larger(top, chunks[c].top);
  }
  for (int64_t c = 0; c < count; ++c) {
    const double factor = exp_or_zero(chunks[c].top - top);
    rest[c % kChunkLanes] += factor * chunks[c].sum;
    squares[c % kChunkLanes] += factor * factor * chunks[c].squares;
    chunks[c].weight = factor;
  }
  const double of_row = fold_by_halves<kChunkLanes>(rest, Add());
  const double logit = static_cast<const T*>(s.logits)[row * s.stride + s.tokens[row]];
  s.rows[row] = describe_row<T>(top, of_row, fold_by_halves<kChunkLanes>(squares, Add()), logit);
  if (s.root.squares != nullptr) {
    s.rows[row].scale = root_scale(s.rows[row], s.root.squares[row], s.root);
  }
  for (int64_t c = 0; c < count; ++c) {
    chunks[c].weight = weight_of(chunks[c].weight, of_row, s.rows[row].scale);
  }
}

// Calls f with a value of the logits' type.
template <typename F>
void with_type(const Softmax& s, F&& f) {
  s.dtype == Dtype::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace

void sum_chunks(const Softmax& s, int64_t row, int64_t begin, int64_t end) {
  with_type(s, [&](auto type) {
    for (int64_t c = begin; c < end; ++c) {
      s.chunks[row * chunks_of_row(s) + c] = sum_chunk<decltype(type)>(s, row, c);
    }
  });
}

void fold_row(const Softmax& s, int64_t row) {
  const int64_t count = chunks_of_row(s);
  with_type(s, [&](auto type) { fold<decltype(type)>(s, row, s.chunks + row * count, count); });
}

void scale_chunks(const Softmax& s, int64_t row, int64_t begin, int64_t end) {
  with_type(s, [&](auto type) {
    using T = decltype(type);
    for (int64_t c = begin; c < end; ++c) {
      const Part<T> part(s, row, c);
      scale(part.logits, part.count, Weight<T>(s.chunks[row * chunks_of_row(s) + c].weight));
      if (part.has_token()) {
        part.logits[part.token] = -static_cast<T>(s.rows[row].scale);
      }
    }
  });
}

}  // namespace fusedstep::cpu
