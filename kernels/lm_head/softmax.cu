// Loss and gradient of rows of logits on the GPU: the order of kernels/lm_head/softmax.h, a block a
// chunk, four neighbouring lanes of two lines a thread.
#include <cmath>

#include "kernels/common/launch.cuh"
#include "kernels/common/vector.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/lm_head/softmax.cuh"

namespace fusedstep::cuda {
namespace {

constexpr int kLines = 2;  // of a warp
constexpr int kPackOfLanes = kSoftmaxLanes / kWarp;
constexpr int kWarps = kThreads / kWarp;
static_assert(kSoftmaxChunk == kLines * kWarps * kSoftmaxLanes && kChunkLanes == kWarp);

// What a thread takes of a row.
template <typename T>
struct Share {
  T* row;
  int64_t first;  // its first class; those of the second line are kSoftmaxLanes further
  int64_t classes;
  bool aligned;

  __device__ Share(const Softmax& s, int64_t row_of_logits, int64_t chunk)
      : row(static_cast<T*>(s.logits) + row_of_logits * s.stride),
        first(chunk * kSoftmaxChunk + threadIdx.x / kWarp * (kLines * kSoftmaxLanes) +
              threadIdx.x % kWarp * kPackOfLanes),
        classes(s.classes),
        aligned(aligned_for(row, kAccess)) {}

  __device__ int64_t at(int line) const { return first + line * kSoftmaxLanes; }
  __device__ int count(int line) const {
    const int64_t left = classes - at(line);
    return static_cast<int>(left < 0 ? 0 : left < kPackOfLanes ? left : kPackOfLanes);
  }
  __device__ bool whole(int line) const { return aligned && count(line) == kPackOfLanes; }

  // What lies past the row's end is 0.
  __device__ void load(T (&x)[kLines][kPackOfLanes]) const {
    Raw raw[kLines];
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      load_pack<T, kPackOfLanes>(row + at(line), whole(line), count(line), raw[line]);
    }
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      widen_pack<T>(raw[line], x[line]);
    }
  }
  __device__ void store(const T (&x)[kLines][kPackOfLanes]) const {
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      Raw raw;
      narrow_pack<T>(x[line], raw);
      store_pack<T, kPackOfLanes>(raw, whole(line), count(line), row + at(line));
    }
  }

  // Calls f(element, its class) for each of x.
  template <typename F>
  __device__ void for_each(T (&x)[kLines][kPackOfLanes], F&& f) const {
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
#pragma unroll
      for (int j = 0; j < kPackOfLanes; ++j) {
        f(x[line][j], at(line) + j);
      }
    }
  }
};

template <typename T>
__device__ T largest_of_warp(T x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    x = larger(x, __shfl_xor_sync(kEveryLane, x, mask));
  }
  return x;
}

// The lanes' sums of a chunk by one warp, which has them in shared memory: a line of sums a warp.
template <typename T, typename Lines>
__device__ T fold_lines(const Lines& lines) {
  T lanes[kPackOfLanes] = {};
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
    for (int j = 0; j < kPackOfLanes; ++j) {
      lanes[j] += lines[warp * kSoftmaxLanes + threadIdx.x * kPackOfLanes + j];
    }
  }
#pragma unroll
  for (int j = 0; j < kPackOfLanes; ++j) {
    lanes[j] = fold_to_first(lanes[j], [](T a, T b) { return a + b; });
  }
  static_assert(kPackOfLanes == 4);
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// The row's results and its chunks' weights by one warp, with the sums of all chunks written.
template <typename T>
__device__ void fold_row(const Softmax& s, int64_t row) {
  const int64_t count = chunks_of_row(s);
  SoftmaxChunk* const chunks = s.chunks + row * count;
  double top = kLowest<T>, rest = 0, squares = 0;
  for (int64_t c = threadIdx.x; c < count; c += kChunkLanes) {
    top = larger(top, __ldcg(&chunks[c].top));
  }
  top = largest_of_warp(top);
  for (int64_t c = threadIdx.x; c < count; c += kChunkLanes) {
    const double factor = exp_or_zero(__ldcg(&chunks[c].top) - top);
    rest += factor * __ldcg(&chunks[c].sum);
    squares += factor * factor * __ldcg(&chunks[c].squares);
    chunks[c].weight = factor;
  }
  rest = sum_of_warp(rest);
  squares = sum_of_warp(squares);
  const double logit = __ldcg(static_cast<const T*>(s.logits) + row * s.stride + s.tokens[row]);
  SoftmaxRow result = describe_row<T>(top, rest, squares, logit);
  if (s.root.squares != nullptr) {
    result.scale = root_scale(result, s.root.squares[row], s.root);
  }
  if (threadIdx.x == 0) {
    s.rows[row] = result;
  }
  for (int64_t c = threadIdx.x; c < count; c += kChunkLanes) {
    chunks[c].weight = weight_of(chunks[c].weight, rest, result.scale);
  }
}

// Brings the thread's share of `row` up to date by the rows before it.
template <typename T>
__device__ void take_steps(const Softmax& s, int64_t row, int64_t chunk,
                           T (&x)[kLines][kPackOfLanes]) {
  const T* factors = static_cast<const T*>(s.root.gram) + row * s.root.gram_stride;
#pragma unroll 4
  for (int64_t i = 0; i < row; ++i) {
    T step[kLines][kPackOfLanes];
    Share<T>(s, i, chunk).load(step);
    const T factor = factors[i];
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
#pragma unroll
      for (int j = 0; j < kPackOfLanes; ++j) {
        x[line][j] -= factor * step[line][j];
      }
    }
  }
}

// By one block. The block that draws the row's last ticket sees all sums and folds them.
template <typename T>
__device__ void sum_chunk(const Softmax& s, unsigned* tickets, int64_t row, int64_t chunk) {
  FUSEDSTEP_SHARED(T, tops, kWarps);
  FUSEDSTEP_SHARED(T, sums, kWarps * kSoftmaxLanes);
  FUSEDSTEP_SHARED(T, squares, kWarps * kSoftmaxLanes);
  const int warp = threadIdx.x / kWarp;
  const Share<T> share(s, row, chunk);
  T x[kLines][kPackOfLanes];
  share.load(x);
  if (s.root.gram != nullptr) {
    take_steps(s, row, chunk, x);
    share.store(x);
  }
  T top = kLowest<T>;
  share.for_each(x, [&, token = s.tokens[row]](T& z, int64_t k) {
    z = k == token || k >= s.classes ? -HUGE_VAL : z;
    top = larger(top, z);
  });
  top = largest_of_warp(top);
  if (threadIdx.x % kWarp == 0) {
    tops[warp] = top;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    top = larger(top, static_cast<T>(tops[w]));
  }
#pragma unroll
  for (int j = 0; j < kPackOfLanes; ++j) {
    const T a = exp_or_zero(x[0][j] - top), b = exp_or_zero(x[1][j] - top);
    const int at = warp * kSoftmaxLanes + threadIdx.x % kWarp * kPackOfLanes + j;
    sums[at] = a + b;
    squares[at] = square_or_zero(a) + square_or_zero(b);
  }
  __syncthreads();
  if (warp != 0) {
    return;
  }
  const T sum = fold_lines<T>(sums), sum_of_squares = fold_lines<T>(squares);
  unsigned ticket = 0;
  const auto blocks = static_cast<unsigned>(chunks_of_row(s));
  if (threadIdx.x == 0) {
    s.chunks[row * blocks + chunk] = {
        .top = top, .sum = sum, .squares = sum_of_squares, .weight = 0};
    __threadfence();
    ticket = atomicInc(tickets + row, blocks - 1);  // which wraps the counter to 0
  }
  if (__shfl_sync(kEveryLane, ticket, 0) == blocks - 1) {
    __threadfence();
    __syncwarp();  // no lane reads before the first has drawn
    fold_row<T>(s, row);
  }
}

template <typename T>
__device__ void scale_chunk(const Softmax& s, int64_t row, int64_t chunk) {
  const SoftmaxChunk& sums = s.chunks[row * chunks_of_row(s) + chunk];
  const T top = static_cast<T>(sums.top), of_token = -static_cast<T>(s.rows[row].scale);
  const Weight<T> weight(sums.weight);
  const Share<T> share(s, row, chunk);
  T x[kLines][kPackOfLanes];
  share.load(x);
  share.for_each(x, [&, token = s.tokens[row]](T& z, int64_t k) {
    z = k == token ? of_token : weight * exp_or_zero(z - top);
  });
  share.store(x);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_rows_kernel(const Softmax s, unsigned* tickets) {
  const int64_t chunks = chunks_of_row(s);
  sum_chunk<T>(s, tickets, blockIdx.x / chunks, blockIdx.x % chunks);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) write_rows_kernel(const Softmax s) {
  const int64_t chunks = chunks_of_row(s);
  scale_chunk<T>(s, blockIdx.x / chunks, blockIdx.x % chunks);
}

// Writes the row before and sums this one. A thread reads of earlier rows what it wrote itself.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    next_row_kernel(const Softmax s, unsigned* tickets, int64_t row) {
  if (row > 0) {
    scale_chunk<T>(s, row - 1, blockIdx.x);
  }
  if (row < s.count) {
    sum_chunk<T>(s, tickets, row, blockIdx.x);
  }
}

template <typename T>
cudaError_t run(const Softmax& s, unsigned* tickets, cudaStream_t stream) {
  const int64_t chunks = chunks_of_row(s);
  cudaError_t status = cudaSuccess;
  if (s.root.gram != nullptr) {
    for (int64_t row = 0; row <= s.count && status == cudaSuccess; ++row) {
      status = launch(next_row_kernel<T>, chunks, stream, s, tickets, row);
    }
    return status;
  }
  status = launch(sum_rows_kernel<T>, s.count * chunks, stream, s, tickets);
  if (status != cudaSuccess || !s.writes) {
    return status;
  }
  return launch(write_rows_kernel<T>, s.count * chunks, stream, s);
}

}  // namespace

cudaError_t softmax_rows(const Softmax& s, unsigned* tickets, cudaStream_t stream) {
  return s.dtype == Dtype::kFloat64 ? run<double>(s, tickets, stream)
                                    : run<float>(s, tickets, stream);
}

}  // namespace fusedstep::cuda
