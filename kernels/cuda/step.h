// The step pass on the GPU, for any rule: one block a chunk, one launch a combination of dtypes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/clip.h"
#include "kernels/common/layout.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/vector.h"

namespace fusedstep::cuda {

// How many elements a thread takes at once: 16 bytes of the narrowest array.
template <typename Param, typename Grad>
constexpr int kStepPack = sizeof(Compute<Param>) == sizeof(double)                        ? 2
                          : sizeof(Param) < sizeof(float) || sizeof(Grad) < sizeof(float) ? 8
                                                                                          : 4;

// Blocks that must fit a multiprocessor at once: up to 80 registers a thread, 128 for float64.
// Without this number nvcc aims at 64 and spills what division, square root and two variants need.
template <typename Param>
constexpr int kStepBlocks = sizeof(Compute<Param>) == sizeof(double) ? 2 : 3;

// The arrays of one chunk, from its first element.
template <typename Variant, typename Param, typename Grad>
struct Arrays {
  using T = Compute<Param>;
  static constexpr int kStates = Variant::kStates;
  static constexpr int kSlots = kStates > 0 ? kStates : 1;
  Param* param;
  const Grad* grad;
  T* states[kSlots];

  __device__ Arrays(const Row& row, const void* grads, int64_t begin)
      : param(static_cast<Param*>(row.param) + begin),
        grad(static_cast<const Grad*>(grads) + begin) {
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      states[k] = static_cast<T*>(row.states[k]) + begin;
    }
  }

  // Elements before the first whose parameter is aligned for packs of n.
  template <int n>
  __device__ int head() const {
    constexpr int kAlign = alignof(Pack<Param, n>);
    const auto past = reinterpret_cast<uintptr_t>(param) % kAlign;
    return past == 0 ? 0 : static_cast<int>((kAlign - past) / sizeof(Param));
  }

  template <int n>
  __device__ bool aligned_from(int at) const {
    bool aligned = aligned_for<Param, n>(param + at) && aligned_for<Grad, n>(grad + at);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      aligned = aligned && aligned_for<T, n>(states[k] + at);
    }
    return aligned;
  }

  // Elements [at, at + n): all loads first, so that they are in flight together.
  template <int n>
  __device__ void update(int at, const typename Variant::template Coefficients<T>& c) const {
    T p[n], g[n], s[kSlots][n];
    load_pack(param + at, p);
    load_pack(grad + at, g);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      load_pack(states[k] + at, s[k]);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) {
      T state[kSlots];
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        state[k] = s[k][j];
      }
      Variant::update(p[j], g[j], state, c);
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        s[k][j] = state[k];
      }
    }
    store_pack(p, param + at);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      store_pack(s[k], states[k] + at);
    }
  }
};

// Packs between a head and a tail of single elements; single elements throughout where the
// arrays are not aligned alike.
template <typename Variant, typename Param, typename Grad>
__device__ void update_chunk(const Arrays<Variant, Param, Grad>& arrays, int size,
                             const typename Variant::template Coefficients<Compute<Param>>& c) {
  constexpr int n = kStepPack<Param, Grad>;
  const int head = arrays.template head<n>();
  const bool packs = head <= size && arrays.template aligned_from<n>(head);
  const int begin = packs ? head : size;
  const int end = packs ? size - (size - head) % n : size;
  const int thread = threadIdx.x;
  for (int i = begin + thread * n; i < end; i += kThreads * n) {
    arrays.template update<n>(i, c);
  }
  // Not unrolled: a head or a tail takes few turns.
#pragma unroll 1
  for (int i = thread; i < begin; i += kThreads) {
    arrays.template update<1>(i, c);
  }
#pragma unroll 1
  for (int i = end + thread; i < size; i += kThreads) {
    arrays.template update<1>(i, c);
  }
}

// Counts the update once all blocks of the tensor have read the old count.
inline __device__ void advance_step(const Row& row, unsigned* finished) {
  const unsigned blocks = static_cast<unsigned>(chunks_of(row.size));
  __threadfence();
  if (row.step != nullptr && (blocks == 1 || atomicInc(finished, blocks - 1) == blocks - 1)) {
    *row.step += 1;
  }
}

template <typename Rule, typename Param, typename Grad>
__global__ void __launch_bounds__(kThreads, kStepBlocks<Param>)
    step_kernel(const Table table, const Clip clip, int64_t first_chunk, unsigned* finished) {
  using T = Compute<Param>;
  const Decision decision = decide(clip);
  if (decision.skip) {
    return;
  }
  // Last chunk first: the norm pass has just read it, so it may still be in the second-level cache.
  const Chunk chunk = locate(table, first_chunk + (gridDim.x - 1 - blockIdx.x));
  const Row& row = table.rows[chunk.row];
  const auto& group = static_cast<const typename Rule::Group*>(table.groups)[row.group];
  Rule::with_variant(group, [&](auto variant) {
    using Variant = decltype(variant);
    // The powers in the coefficients take one thread some hundred cycles; the others wait.
    FUSEDSTEP_SHARED(typename Variant::template Coefficients<T>, shared, 1);
    if (threadIdx.x == 0) {
      const double step = row.step != nullptr ? *row.step + 1.0 : 0;
      shared[0] = Variant::template coefficients<T>(group, step, decision.multiplier);
    }
    __syncthreads();
    const typename Variant::template Coefficients<T> coefficients = shared[0];
    if (threadIdx.x == 0) {
      advance_step(row, finished + chunk.row);
    }
    update_chunk(Arrays<Variant, Param, Grad>(row, table.grads[chunk.row], chunk.begin), chunk.size,
                 coefficients);
  });
}

// One launch for the chunks of `range`. `finished`: [rows] zeros, zeros again after.
template <typename Rule>
cudaError_t step_pass(const Table& table, const Clip& clip, const Launch& range, unsigned* finished,
                      cudaStream_t stream) {
  return with_storage(range.param_dtype, [&](auto param) {
    return with_storage(range.grad_dtype, [&](auto grad) {
      return launch(step_kernel<Rule, decltype(param), decltype(grad)>, range.num_chunks, stream,
                    table, clip, range.first_chunk, finished);
    });
  });
}

}  // namespace fusedstep::cuda
