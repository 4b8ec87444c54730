// The step pass on the GPU, for any rule: one block a chunk.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/passes.h"
#include "kernels/cuda/storage.h"

namespace fusedstep::cuda {

// Blocks that must fit a multiprocessor at once, which bounds the registers of a thread: up to 80,
// or 128 for float64, where all is of one type; packs of five arrays of any type need more.
template <typename T, bool uniform>
constexpr int kStepBlocks = !uniform                      ? 1
                            : sizeof(T) == sizeof(double) ? 2
                                                          : 3;

// All elements of a chunk, a pack of each array a turn. Every thread takes every turn: those of a
// warp work together where a state is coded in blocks.
template <typename Variant, typename T, bool uniform, typename Coefficients>
__device__ void update_chunk(const Row& row, void* grads, const GroupHead& group, uint32_t step,
                             const Chunk& chunk, const Coefficients& c) {
  constexpr int n = kPack<T, uniform>;
  constexpr int kStates = Variant::kStates;
  constexpr int kSlots = kStates > 0 ? kStates : 1;
  const ChunkParam<T, uniform> param(row, group, chunk.begin);
  const ChunkArray<T, uniform> grad(grads, row.grad_dtype, chunk.begin);
  ChunkState<T, uniform> states[kSlots];
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    states[k] = ChunkState<T, uniform>(row, k, chunk.begin);
  }
  const auto random = [&](uint32_t slot) {  // 0 for the parameter, 1 + k for state k
    return RandomStream{group.seed, random_array(static_cast<uint32_t>(row.position), slot), step};
  };
#pragma unroll 1
  for (int turn = 0; turn < chunk.size; turn += kThreads * n) {
    const int at = turn + static_cast<int>(threadIdx.x) * n;
    const int left = chunk.size - at;
    const int count = left < n ? left : n;  // 0 or below past the end
    Raw raw_param, raw_master, raw_grad, raw_states[kSlots];
    float scales[kSlots];
    param.load(at, count, raw_param, raw_master);
    grad.load(at, count, raw_grad);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      states[k].load(at, count, raw_states[k], scales[k]);
    }
    T p[n], g[n], s[kSlots][n];
    param.widen(raw_param, raw_master, p);
    grad.widen(raw_grad, g);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      states[k].widen(raw_states[k], scales[k], s[k]);
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
    param.store(p, at, count, random(0), chunk.begin);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      states[k].store(s[k], at, count, random(1 + k), chunk.begin);
    }
  }
}

// Counts the update once all blocks of the tensor have read the old count.
inline __device__ void advance_step(const Row& row, unsigned* finished) {
  const unsigned blocks = static_cast<unsigned>(chunks_of(row.size));
  __threadfence();
  if (row.step() != nullptr && (blocks == 1 || atomicInc(finished, blocks - 1) == blocks - 1)) {
    *row.step() += 1;
  }
}

template <typename Rule, typename T, bool uniform>
__global__ void __launch_bounds__(kThreads, kStepBlocks<T, uniform>)
    step_kernel(const Table table, const Clip clip, int64_t first_chunk, unsigned* finished) {
  const Decision decision = decide(clip);
  if (decision.skip) {
    return;
  }
  // Last chunk first: the norm pass has just read it, so it may still be in the second-level cache.
  const Chunk chunk = locate(table, first_chunk + (gridDim.x - 1 - blockIdx.x));
  const Row& row = table.rows[chunk.row];
  const auto& group = static_cast<const GroupOf<Rule>*>(table.groups)[row.group];
  Rule::with_variant(group.rule, [&](auto variant) {
    using Variant = decltype(variant);
    using Coefficients =
        decltype(Variant::template coefficients<T>(group.rule, update_of(group.head, nullptr, 1)));
    // The powers in the coefficients take one thread some hundred cycles; the others wait.
    FUSEDSTEP_SHARED(Coefficients, shared, 1);
    FUSEDSTEP_SHARED(uint32_t, shared_step, 1);
    if (threadIdx.x == 0) {
      const Update update = update_of(group.head, row.step(), decision.multiplier);
      shared_step[0] = static_cast<uint32_t>(update.step);
      shared[0] = Variant::template coefficients<T>(group.rule, update);
    }
    __syncthreads();
    const Coefficients coefficients = shared[0];
    const uint32_t step = shared_step[0];
    if (threadIdx.x == 0) {
      advance_step(row, finished + chunk.row);
    }
    update_chunk<Variant, T, uniform>(row, table.grads[chunk.row], group.head, step, chunk,
                                      coefficients);
  });
}

template <typename Rule>
cudaError_t step_pass(const Table& table, const Clip& clip, const Launch& range, unsigned* finished,
                      cudaStream_t stream) {
  const auto run = [&](auto kernel) {
    return launch(kernel, range.num_chunks, stream, table, clip, range.first_chunk, finished);
  };
  if (range.computed == Dtype::kFloat64) {
    return range.uniform ? run(step_kernel<Rule, double, true>)
                         : run(step_kernel<Rule, double, false>);
  }
  return range.uniform ? run(step_kernel<Rule, float, true>) : run(step_kernel<Rule, float, false>);
}

}  // namespace fusedstep::cuda
