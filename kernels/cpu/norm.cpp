// The norm pass on the CPU: the order of kernels/common/norm.h, 256 lanes at a time.
#include "kernels/cpu/norm.h"

#include <algorithm>

#include "kernels/cpu/tile.h"

namespace fusedstep::cpu {
namespace {

template <Norm norm, typename T>
FUSEDSTEP_HD T fold_lanes(T* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      lanes[l] = combine<norm>(lanes[l], lanes[l + half]);
    }
  }
  return lanes[0];
}

// Adds `n` elements, a whole number of rows but for the last, to the lanes.
template <Norm norm, typename T>
FUSEDSTEP_CLONES void add_rows(const T* x, int n, T scale, T* lanes) {
  T sums[kLanes];
  std::copy(lanes, lanes + kLanes, sums);
  const T* const end = x + n;
  for (; end - x >= kLanes; x += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      sums[l] = accumulate<norm>(sums[l], x[l] * scale);
    }
  }
  for (int l = 0; l < end - x; ++l) {
    sums[l] = accumulate<norm>(sums[l], x[l] * scale);
  }
  std::copy(sums, sums + kLanes, lanes);
}

template <Norm norm, typename T>
FUSEDSTEP_CLONES T fold_strip(T* lanes) {
  return fold_lanes<norm>(lanes);
}

template <Norm norm, typename T>
T sum_chunk(void* data, Dtype dtype, const Chunk& chunk, T scale) {
  static_assert(kTile % kLanes == 0, "a tile must hold whole rows");
  alignas(64) T buffer[kTile];
  alignas(64) T lanes[kLanes];
  const int strip = rows_of_strip(chunk.size) * kLanes;
  T total = 0;
  for (int from = 0; from < chunk.size; from += strip) {
    const int to = std::min(from + strip, chunk.size);
    const int tile = stored_as_computed<T>(dtype) ? strip : kTile;
    std::fill(lanes, lanes + kLanes, T{0});
    for (int i = from; i < to; i += tile) {
      const int n = std::min(tile, to - i);
      add_rows<norm>(load_tile<T>(data, dtype, chunk.begin + i, n, buffer), n, scale, lanes);
    }
    total = combine<norm>(total, fold_strip<norm>(lanes));
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
