// QK-Clip on the GPU: a block takes a chunk of a weight, each of its warps an eighth, run by run.
#include "kernels/common/launch.cuh"
#include "kernels/common/vector.cuh"
#include "kernels/optim/qk_clip.cuh"

namespace fusedstep::cuda {
namespace {

constexpr int kWarpShare = kChunkSize / (kThreads / kWarp);  // elements of a chunk

// x[0 .. count) by one warp, 16 bytes a thread at a time.
template <typename Storage>
__device__ void scale(Storage* x, int count, Compute<Storage> factor) {
  constexpr int n = kAccess / sizeof(Storage);
  const bool aligned = aligned_for(x, kAccess);
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) % kWarp * n; at < count; at += kWarp * n) {
    const bool whole = aligned && count - at >= n;
    Raw raw;
    Compute<Storage> values[n];
    load_pack<Storage, n>(x + at, whole, count - at, raw);
    widen_pack<Storage>(raw, values);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      values[j] *= factor;
    }
    narrow_pack<Storage>(values, raw);
    store_pack<Storage, n>(raw, whole, count - at, x + at);
  }
}

__global__ void __launch_bounds__(kThreads) qk_clip_kernel(const Table table, double threshold) {
  const Chunk chunk = locate(table, blockIdx.x);
  const Row& row = table.rows[chunk.row];
  const QkHeads heads = static_cast<const QkHeads*>(table.groups)[chunk.row];
  const int64_t begin = chunk.begin + static_cast<int64_t>(threadIdx.x) / kWarp * kWarpShare;
  const int64_t chunk_end = chunk.begin + chunk.size;
  const int64_t end = begin + kWarpShare < chunk_end ? begin + kWarpShare : chunk_end;
  with_storage(row.param_dtype, [&](auto storage) {
    using Storage = decltype(storage);
    for_each_run(heads, begin, end, [&](int64_t head, int64_t first, int64_t after) {
      assume_global(heads.max_logits + head);
      const double factor = qk_factor(heads.max_logits[head], threshold);
      if (factor != 1) {
        scale(static_cast<Storage*>(row.param) + first, static_cast<int>(after - first),
              static_cast<Compute<Storage>>(factor));
      }
    });
  });
}

}  // namespace

cudaError_t qk_clip(const Table& table, double threshold, cudaStream_t stream) {
  return launch(qk_clip_kernel, table.num_chunks, stream, table, threshold);
}

}  // namespace fusedstep::cuda
