// Sums of rows by id on the GPU: the order of kernels/lm_head/segment_sum.h, a warp takes a piece
// and as many columns as its lanes read at once.
#include "kernels/common/launch.cuh"
#include "kernels/common/vector.cuh"
#include "kernels/lm_head/segment_sum.cuh"

namespace fusedstep::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kRowsAtOnce = 8;  // whose loads are under way together

// A piece and neighbouring columns of it: what a thread takes.
template <int columns>
struct Share {
  int64_t piece, column;
  int count;  // of the columns; 0: nothing to do

  static FUSEDSTEP_HD int64_t warps_of_piece(const Segments& s) {
    return (s.width + kWarp * columns - 1) / (kWarp * columns);
  }
  static int64_t blocks(const Segments& s) {
    return (pieces_of(s.count) * warps_of_piece(s) + kWarps - 1) / kWarps;
  }
  __device__ explicit Share(const Segments& s) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    piece = warp / warps_of_piece(s);
    column = (warp % warps_of_piece(s) * kWarp + threadIdx.x % kWarp) * columns;
    const int64_t left = piece < pieces_of(s.count) ? s.width - column : 0;
    count = static_cast<int>(left < 0 ? 0 : left < columns ? left : columns);
  }
};

// Two doubles are 16 bytes.
template <bool whole, int n>
FUSEDSTEP_HD void load_doubles(const double* from, int count, double (&to)[n]) {
#pragma unroll
  for (int j = 0; j < n; j += 2) {
    Raw raw;
    load_pack<double, 2>(from + j, whole, count - j, raw);
    memcpy(to + j, &raw, 2 * sizeof(double));
  }
}

template <bool whole, int n>
FUSEDSTEP_HD void store_doubles(const double (&from)[n], int count, double* to) {
#pragma unroll
  for (int j = 0; j < n; j += 2) {
    Raw raw;
    memcpy(&raw, from + j, 2 * sizeof(double));
    store_pack<double, 2>(raw, whole, count - j, to + j);
  }
}

template <int n>
FUSEDSTEP_HD void add(const double (&x)[n], double (&sum)[n]) {
#pragma unroll
  for (int j = 0; j < n; ++j) {
    sum[j] += x[j];
  }
}

// Whether every row of doubles, from an even column on, begins at a multiple of 16 bytes.
FUSEDSTEP_HD bool doubles_aligned(const Segments& s) {
  return s.width % 2 == 0 && aligned_for(s.sums, kAccess) && aligned_for(s.heads, kAccess);
}

// `whole`: all columns are there and aligned. Else rows come one by one, element by element.
template <typename Storage, bool whole, int columns>
__device__ void sum_piece(const Segments& s, const Share<columns>& share) {
  constexpr int kRows = whole ? kRowsAtOnce : 1;
  const auto* rows = static_cast<const Storage*>(s.rows) + share.column;
  const int64_t begin = piece_begin(share.piece), end = piece_end(s, share.piece);
  bool is_head = is_continued(s, share.piece);
  int64_t id = s.ids[begin];
  double sum[columns] = {};
  const auto put = [&] {
    double* of_id = s.sums + id * s.width + share.column;
    if (is_head) {
      store_doubles<whole>(sum, share.count, s.heads + share.piece * s.width + share.column);
    } else {
      double total[columns];
      load_doubles<whole>(of_id, share.count, total);
      add(sum, total);
      store_doubles<whole>(total, share.count, of_id);
    }
  };
#pragma unroll 1
  for (int64_t p = begin; p < end; p += kRows) {
    Raw raw[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // Past the end, the last row again: no branch, so that all loads precede the first addition.
      const int64_t at = p + r < end ? p + r : end - 1;
      load_pack<Storage, columns>(rows + s.order[at] * s.stride, whole, share.count, raw[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (p + r < end) {
        if (s.ids[p + r] != id) {
          put();
          is_head = false;
          id = s.ids[p + r];
#pragma unroll
          for (int j = 0; j < columns; ++j) {
            sum[j] = 0;
          }
        }
        double values[columns];
        widen_pack<Storage>(raw[r], values);
        add(values, sum);
      }
    }
  }
  put();
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(const Segments s) {
  constexpr int kColumns = kAccess / sizeof(Storage);
  const Share<kColumns> share(s);
  if (share.count == 0) {
    return;
  }
  const bool rows_aligned = aligned_for(s.rows, kAccess) && s.stride % kColumns == 0;
  if (share.count == kColumns && rows_aligned && doubles_aligned(s)) {
    sum_piece<Storage, true>(s, share);
  } else {
    sum_piece<Storage, false>(s, share);
  }
}

template <bool whole>
__device__ void collect(const Segments& s, const Share<2>& share, int64_t heads) {
  double* of_id = s.sums + s.ids[piece_end(s, share.piece) - 1] * s.width + share.column;
  double sum[2];
  load_doubles<whole>(of_id, share.count, sum);
  for (int64_t h = 1; h <= heads; ++h) {
    double head[2];
    load_doubles<whole>(s.heads + (share.piece + h) * s.width + share.column, share.count, head);
    add(head, sum);
  }
  store_doubles<whole>(sum, share.count, of_id);
}

template <int columns>
__global__ void __launch_bounds__(kThreads) collect_heads_kernel(const Segments s) {
  const Share<columns> share(s);
  const int64_t heads = share.count > 0 ? heads_to_collect(s, share.piece) : 0;
  if (heads > 0 && share.count == columns && doubles_aligned(s)) {
    collect<true>(s, share, heads);
  } else if (heads > 0) {
    collect<false>(s, share, heads);
  }
}

}  // namespace

cudaError_t segment_sum(const Segments& s, cudaStream_t stream) {
  const cudaError_t summed = with_storage(s.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    return launch(sum_pieces_kernel<Storage>, Share<kAccess / sizeof(Storage)>::blocks(s), stream,
                  s);
  });
  return summed == cudaSuccess ? launch(collect_heads_kernel<2>, Share<2>::blocks(s), stream, s)
                               : summed;
}

}  // namespace fusedstep::cuda
