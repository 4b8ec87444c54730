// The norm pass on the CPU: the order of kernels/optim/norm.h, 256 lanes at a time.
#include "kernels/optim/norm.h"

#include <algorithm>

#include "kernels/common/pages.h"
#include "kernels/common/reduce.h"
#include "kernels/optim/tile.h"

namespace fusedstep::cpu {
namespace {

constexpr int kMaxStrip = kChunkSize / kStrips;

template <Norm norm, typename T>
FUSEDSTEP_HD T fold_lanes(T* lanes) {
  return fold_by_halves<kLanes>(lanes, combine<norm, T>);
}

template <Norm norm, typename T>
FUSEDSTEP_CLONES T sum_strip(const T* x, int n, T scale) {
  alignas(64) T lanes[kLanes];
  const T* const end = x + n;
  if (n < kLanes) {
    std::fill(lanes, lanes + kLanes, T{0});
  } else {
    for (int l = 0; l < kLanes; ++l) {
      lanes[l] = accumulate<norm>(T{0}, x[l] * scale);
    }
    x += kLanes;
  }
  for (; end - x >= kLanes; x += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lanes[l] = accumulate<norm>(lanes[l], x[l] * scale);
    }
  }
  for (int l = 0; l < end - x; ++l) {
    lanes[l] = accumulate<norm>(lanes[l], x[l] * scale);
  }
  return fold_lanes<norm>(lanes);
}

template <Norm norm, typename T>
T sum_chunk(void* data, Dtype dtype, const Chunk& chunk, T scale) {
  alignas(64) T buffer[kMaxStrip];
  const int strip = rows_of_strip(chunk.size) * kLanes;
  T total = 0;
  for (int i = 0; i < chunk.size; i += strip) {
    const int n = std::min(strip, chunk.size - i);
    const T* x = load_tile<T>(data, dtype, chunk.begin + i, n, buffer);
    if (x != buffer && i % (2 * strip) == 0) {
      announce_pages(x + n, 2 * n);  // of the next two strips
    }
    total = combine<norm>(total, sum_strip<norm>(x, n, scale));
  }
  return total;
}

template <Norm norm, typename T>
double chunk_partial(void* data, Dtype dtype, const Chunk& chunk) {
  const double partial = sum_chunk<norm>(data, dtype, chunk, T{1});
  if (is_finite(partial) || norm == Norm::kInf || sizeof(T) == sizeof(double)) {
    return partial;
  }
  return undo_rescue<norm>(sum_chunk<norm>(data, dtype, chunk, rescue_scale<T>()));
}

}  // namespace

void norm_chunks(const Table& table, Norm norm, int64_t begin, int64_t end, double* partials) {
  with_norm(norm, [&](auto n) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk chunk = locate(table, c);
      const Dtype dtype = table.rows[chunk.row].grad_dtype;
      void* grad = table.grads[chunk.row];
      partials[chunk.partial] = dtype == Dtype::kFloat64
                                    ? chunk_partial<n.value, double>(grad, dtype, chunk)
                                    : chunk_partial<n.value, float>(grad, dtype, chunk);
    }
  });
}

double fold_partials(Norm norm, const double* partials, int64_t count, const float* grad_scale) {
  double lanes[kLanes] = {};
  return with_norm(norm, [&](auto n) {
    for (int64_t c = 0; c < count; ++c) {
      double& lane = lanes[c % kLanes];
      lane = combine<n.value>(lane, partials[c]);
    }
    return finish<n.value>(fold_lanes<n.value>(lanes), grad_scale != nullptr ? *grad_scale : 1);
  });
}

}  // namespace fusedstep::cpu
