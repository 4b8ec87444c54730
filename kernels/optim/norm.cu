// The norm pass on the GPU: the order of kernels/optim/norm.h, a warp a strip, eight lanes a
// thread.
#include "kernels/common/launch.cuh"
#include "kernels/common/vector.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/optim/norm.cuh"

namespace fusedstep::cuda {
namespace {

constexpr int kLanesPerThread = kLanes / kWarp;
constexpr int kLoadsInFlight = 8;  // of 16 bytes, by each thread
constexpr int kNormBlocks = 4;     // that must fit a multiprocessor at once: up to 64 registers

// Which lanes a thread holds: `kPacks` groups of `kPack` neighbours, a pack being one 16-byte load.
// Group k of thread t begins at lane k * 32 * kPack + t * kPack, so each load of a warp is one run.
template <typename Storage>
struct LaneMap {
  static constexpr int kPack = kAccess / sizeof(Storage);
  static_assert(kPack <= kLanesPerThread);
  static constexpr int kPacks = kLanesPerThread / kPack;
  static FUSEDSTEP_HD int first_lane(int thread, int pack) {
    return (pack * kWarp + thread) * kPack;
  }
};

// Folds the 256 lanes of a warp by halves: between the packs of a thread, then across the
// threads, then within a pack. Thread 0 ends up with the strip's sum.
template <Norm norm, typename Map, typename T>
__device__ T fold_warp(T (&lanes)[Map::kPacks][Map::kPack]) {
#pragma unroll
  for (int half = Map::kPacks / 2; half > 0; half /= 2) {
#pragma unroll
    for (int k = 0; k < half; ++k) {
#pragma unroll
      for (int j = 0; j < Map::kPack; ++j) {
        lanes[k][j] = combine<norm>(lanes[k][j], lanes[k + half][j]);
      }
    }
  }
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < Map::kPack; ++j) {
      lanes[0][j] = combine<norm>(lanes[0][j], __shfl_down_sync(kEveryLane, lanes[0][j], half));
    }
  }
#pragma unroll
  for (int half = Map::kPack / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) {
      lanes[0][j] = combine<norm>(lanes[0][j], lanes[0][j + half]);
    }
  }
  return lanes[0][0];
}

// One strip by one warp: elements [from, to) of the chunk that starts at `x`.
template <Norm norm, typename T, typename Storage>
__device__ T sum_strip(const Storage* x, int from, int to, T scale) {
  using Map = LaneMap<Storage>;
  constexpr int kRowsAtOnce = kLoadsInFlight / Map::kPacks;
  const int thread = threadIdx.x % kWarp;
  const bool packs = from < to && aligned_for(x, kAccess);
  const int whole = packs ? to - (to - from) % kLanes : from;
  T lanes[Map::kPacks][Map::kPack] = {};
  // No branch inside, so that the loads of all rows at once precede the first addition.
#pragma unroll kRowsAtOnce
  for (int row = from; row < whole; row += kLanes) {
#pragma unroll
    for (int k = 0; k < Map::kPacks; ++k) {
      Raw raw;
      load_whole<kAccess>(x + row + Map::first_lane(thread, k), raw);
      T values[Map::kPack];
      widen_pack<Storage>(raw, values);
#pragma unroll
      for (int j = 0; j < Map::kPack; ++j) {
        lanes[k][j] = accumulate<norm>(lanes[k][j], values[j] * scale);
      }
    }
  }
  // The last row where it is not full; every row where packs would not be aligned.
#pragma unroll 1
  for (int row = whole; row < to; row += kLanes) {
#pragma unroll
    for (int k = 0; k < Map::kPacks; ++k) {
      const int at = row + Map::first_lane(thread, k);
#pragma unroll
      for (int j = 0; j < Map::kPack; ++j) {
        T value = 0;
        if (at + j < to) {
          assume_global(x + at + j);
          value = load_as<T>(x[at + j]);
        }
        lanes[k][j] = accumulate<norm>(lanes[k][j], value * scale);
      }
    }
  }
  return fold_warp<norm, Map>(lanes);
}

// The whole chunk by the whole block; every thread gets the result.
template <Norm norm, typename T, typename Storage>
__device__ T sum_chunk(const Storage* x, int size, T scale) {
  FUSEDSTEP_SHARED(T, strips, kStrips);
  const int warp = threadIdx.x / kWarp;
  const int strip = rows_of_strip(size) * kLanes;
  const int from = warp * strip;
  const int to = from + strip < size ? from + strip : size;
  const T sum = sum_strip<norm>(x, from, to, scale);
  __syncthreads();  // an earlier sum of this chunk has been read
  if (threadIdx.x % kWarp == 0) {
    strips[warp] = sum;
  }
  __syncthreads();
  T total = 0;
  for (int s = 0; s < kStrips; ++s) {
    total = combine<norm>(total, static_cast<T>(strips[s]));
  }
  return total;
}

template <Norm norm, typename Storage>
__device__ double chunk_partial(const Storage* x, int size) {
  using T = Compute<Storage>;
  double partial = sum_chunk<norm>(x, size, T{1});
  if (!is_finite(partial) && norm != Norm::kInf && sizeof(T) == sizeof(float)) {
    partial = undo_rescue<norm>(sum_chunk<norm>(x, size, rescue_scale<T>()));
  }
  return partial;
}

// By the last block, with all partials written: thread l is lane l. Thread 0 gets the result.
template <Norm norm>
__device__ double fold_partials(const double* partials, int64_t count) {
  FUSEDSTEP_SHARED(double, lanes, kLanes);
  double lane = 0;
  for (int64_t c = threadIdx.x; c < count; c += kLanes) {
    lane = combine<norm>(lane, __ldcg(partials + c));
  }
  lanes[threadIdx.x] = lane;
  for (int half = kLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(half)) {
      lanes[threadIdx.x] = combine<norm>(static_cast<double>(lanes[threadIdx.x]),
                                         static_cast<double>(lanes[threadIdx.x + half]));
    }
  }
  return threadIdx.x == 0 ? static_cast<double>(lanes[0]) : 0;  // only thread 0 may: it wrote it
}

template <Norm norm>
__global__ void __launch_bounds__(kThreads, kNormBlocks)
    norm_kernel(const Table table, const float* grad_scale, double* partials, unsigned* ticket,
                double* out, float* published) {
  const Chunk chunk = locate(table, blockIdx.x);
  const double partial = with_storage(table.rows[chunk.row].grad_dtype, [&](auto storage) {
    using Storage = decltype(storage);
    const auto* grad = static_cast<const Storage*>(table.grads[chunk.row]);
    return chunk_partial<norm>(grad + chunk.begin, chunk.size);
  });

  // The block that draws the last ticket sees all partials; atomicInc wraps the counter to 0.
  FUSEDSTEP_SHARED(bool, is_last, 1);
  if (threadIdx.x == 0) {
    partials[chunk.partial] = partial;
    __threadfence();
    is_last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last[0]) {
    __threadfence();
    const double folded = fold_partials<norm>(partials, table.num_chunks);
    if (threadIdx.x == 0) {
      const double result = finish<norm>(folded, grad_scale != nullptr ? *grad_scale : 1);
      *out = result;
      if (published != nullptr) {
        *published = static_cast<float>(result);
      }
    }
  }
}

}  // namespace

cudaError_t norm_pass(const Table& table, Norm norm, const float* grad_scale, double* partials,
                      unsigned* ticket, double* out, float* published, cudaStream_t stream) {
  return with_norm(norm, [&](auto n) {
    return launch(norm_kernel<n.value>, table.num_chunks, stream, table, grad_scale, partials,
                  ticket, out, published);
  });
}

}  // namespace fusedstep::cuda
