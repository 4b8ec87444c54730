// The pseudo-inverses of tiny matrices on the GPU: a warp takes one of 32 rows or columns, two of
// up to 16 or four of up to 8, a lane a column or a row of it.
#pragma once

#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/common/warp.cuh"
// Not tiny_pinv.cuh: with this definition of tiny_pinv_of, its function that calls all six would
// compile all six in each file.
#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cuda {
namespace {

// Of a block, so that its shared memory stays below 48 KB, which needs no opt-in.
template <int side>
constexpr int kThreadsOf = side == tiny::kLargest ? 64 : 128;

// Blocks that a multiprocessor has shared memory for, or one or two fewer, so that registers do not
// spill.
template <int side>
constexpr int kBlocks = side == tiny::kLargest ? 6 : 5;

// The lanes that have a matrix between them. Those beyond the last matrix repeat its work and
// discard the results, since the lanes of a warp branch together.
template <int side>
class Lanes {
 public:
  static constexpr int kRounds = 1;

  __device__ Lanes(int64_t matrix, int64_t count)
      : matrix_(matrix < count ? matrix : count - 1), here_(matrix < count) {}

  __device__ int first() const { return static_cast<int>(threadIdx.x) % side; }
  __device__ int step() const { return side; }
  __device__ void sync() const { __syncwarp(); }
  __device__ bool here() const { return here_; }
  __device__ bool any(bool mask) const { return __any_sync(kEveryLane, mask); }
  __device__ bool any_here(bool mask) const { return mask; }
  __device__ bool of_matrix(bool mask) const {
    const int begin = static_cast<int>(threadIdx.x) % kWarp / side * side;
    return (__ballot_sync(kEveryLane, mask) >> begin & (~0u >> (kWarp - side))) != 0;
  }

  template <typename Storage>
  __device__ double load(const void* from, int64_t size, int place) const {
    return static_cast<const Storage*>(from)[matrix_ * size + place];
  }
  template <typename Storage>
  __device__ void store(Storage* to, int64_t size, int place, double value, bool where) const {
    if (where) {
      to[matrix_ * size + place] = tiny::rounded<Storage>(value);
    }
  }

 private:
  int64_t matrix_;
  bool here_;
};

template <typename Storage, int side>
__global__ void __launch_bounds__(kThreadsOf<side>, kBlocks<side>)
    tiny_pinv_kernel(const TinyPinv p) {
  constexpr int kMatrices = kThreadsOf<side> / side;
  constexpr int kSize = tiny::Workspace<double*, side>::kSize;
  FUSEDSTEP_SHARED(double, memory, kMatrices* kSize);
  const int of_block = static_cast<int>(threadIdx.x) / side;
  const Lanes<side> lanes(static_cast<int64_t>(blockIdx.x) * kMatrices + of_block, p.count);
  const tiny::Workspace<std::decay_t<decltype(memory)>, side> work(memory, of_block * kSize);
  bool where = lanes.here(), open = where;
  for (int attempt = 0; attempt < 2 && lanes.any(where); ++attempt) {
    open = tiny::invert<Storage, double>(lanes, p, work, attempt > 0, where, open);
    where = p.jacobi ? where : open;
  }
}

}  // namespace

template <typename Storage, int side>
cudaError_t tiny_pinv_of(const TinyPinv& p, cudaStream_t stream) {
  constexpr int kMatrices = kThreadsOf<side> / side;
  const int64_t blocks = (p.count + kMatrices - 1) / kMatrices;
  return launch<kThreadsOf<side>>(tiny_pinv_kernel<Storage, side>, blocks, stream, p);
}

}  // namespace fusedstep::cuda
