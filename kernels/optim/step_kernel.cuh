// The step pass on the GPU, for any rule: one block a chunk.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/optim/step.cuh"
#include "kernels/optim/storage.cuh"

namespace fusedstep::cuda {

// Blocks that must fit a multiprocessor at once, which bounds the registers of a thread: 3 allow 80
// registers, 2 allow 128, and 1 the most there are.
template <typename T, bool uniform>
constexpr int kStepBlocks = (uniform ? 3 : 2) - (sizeof(T) == sizeof(double) ? 1 : 0);

// All arrays of a chunk, and the keys of its random numbers.
template <typename T, bool uniform, int kStates>
struct ChunkArrays {
  static constexpr int n = kPack<T, uniform>;
  ChunkParam<T, uniform> param;
  ChunkArray<T, uniform> grad;
  ChunkState<T, uniform> states[kStates > 0 ? kStates : 1];
  int64_t first_element;  // where the chunk begins in the whole tensor
  static constexpr int kKeys = 1 + (kStates + 1) / 2;
  RandomKey keys[kKeys];  // for the parameter, then for each two states
  bool draws;             // a state is rounded stochastically

  // Of the pack at element `at`.
  __device__ RandomPack<n> random(int key, int at) const {
    return random_pack<n>(keys[key], first_element + at);
  }
};

template <typename T, bool uniform, int kStates>
__device__ ChunkArrays<T, uniform, kStates> arrays_of(const Row& row, void* grads,
                                                      const GroupHead& group, uint32_t step,
                                                      int64_t begin) {
  ChunkArrays<T, uniform, kStates> arrays{
      .param = ChunkParam<T, uniform>(row, group, begin),
      .grad = ChunkArray<T, uniform>(grads, row.grad_dtype, begin),
      .states = {},
      .first_element = row.first_element + begin,
      .keys = {},
      .draws = false,
  };
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    arrays.states[k] = ChunkState<T, uniform>(row, k, begin);
    arrays.draws = arrays.draws || arrays.states[k].rounds();
  }
  if (arrays.draws || arrays.param.rounds()) {
    for (int key = 0; key < arrays.kKeys; ++key) {
      const int slot = key == 0 ? 0 : 2 * key - 1;  // 1 + k for the states k and k + 1
      const uint32_t array = random_array(static_cast<uint32_t>(row.position), slot);
      const auto first = static_cast<uint64_t>(arrays.first_element);
      arrays.keys[key] = random_key({group.seed, array, step}, first);
    }
  }
  return arrays;
}

// All elements of a chunk, a pack of each array a turn. Every thread takes every turn: those of a
// warp work together where a state is coded in blocks.
template <typename Variant, typename T, bool uniform, typename Arrays, typename Coefficients>
__device__ void update_chunk(const Arrays& arrays, int size, const Coefficients& c) {
  constexpr int n = kPack<T, uniform>;
  constexpr int kStates = Variant::kStates;
  constexpr int kSlots = kStates > 0 ? kStates : 1;
#pragma unroll 1
  for (int turn = 0; turn < size; turn += kThreads * n) {
    const int at = turn + static_cast<int>(threadIdx.x) * n;
    const int left = size - at;
    const int count = left < n ? left : n;  // 0 or below past the end
    Raw raw_param, raw_master, raw_grad, raw_states[kSlots];
    float scales[kSlots];
    arrays.param.load(at, count, raw_param, raw_master);
    arrays.grad.load(at, count, raw_grad);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      arrays.states[k].load(at, count, raw_states[k], scales[k]);
    }
    T p[n], g[n], s[kSlots][n];
    arrays.param.widen(raw_param, raw_master, p);
    arrays.grad.widen(raw_grad, g);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      arrays.states[k].widen(raw_states[k], scales[k], s[k]);
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
    if constexpr (!kRests<Variant>) {
      arrays.param.store(p, at, count, [&] { return arrays.random(0, at); });
    }
    arrays.param.advance_average(p, at, count);
    RandomPack<n> random = {};
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!uniform && arrays.draws) {
        random = k % 2 == 0 ? arrays.random(1 + k / 2, at) : exchange_bytes(random);
      }
      arrays.states[k].store(s[k], at, count, random);
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
    using Arrays = ChunkArrays<T, uniform, Variant::kStates>;
    FUSEDSTEP_SHARED(Coefficients, shared_coefficients, 1);
    FUSEDSTEP_SHARED(Arrays, shared_arrays, 1);
    // The powers in the coefficients take one thread some hundred cycles; the others wait.
    if (threadIdx.x == 0) {
      const Update update = update_of(group.head, row.step(), decision.multiplier);
      shared_coefficients[0] = Variant::template coefficients<T>(group.rule, update);
      shared_arrays[0] = arrays_of<T, uniform, Variant::kStates>(
          row, table.grads[chunk.row], group.head, static_cast<uint32_t>(update.step), chunk.begin);
    }
    __syncthreads();
    if (threadIdx.x == 0 && group.head.counted == 0) {
      advance_step(row, finished + chunk.row);
    }
    // Mixed arrays take so many registers that what all threads share stays in shared memory.
    std::conditional_t<uniform, const Arrays, const Arrays&> arrays = shared_arrays[0];
    std::conditional_t<uniform, const Coefficients, const Coefficients&> coefficients =
        shared_coefficients[0];
    update_chunk<Variant, T, uniform>(arrays, chunk.size, coefficients);
  });
}

// Computed in T.
template <typename Rule, typename T>
cudaError_t step_pass_in(const Table& table, const Clip& clip, const Launch& range,
                         unsigned* finished, cudaStream_t stream) {
  const auto run = [&](auto kernel) {
    return launch(kernel, range.num_chunks, stream, table, clip, range.first_chunk, finished);
  };
  return range.uniform ? run(step_kernel<Rule, T, true>) : run(step_kernel<Rule, T, false>);
}

template <typename Rule>
cudaError_t step_pass(const Table& table, const Clip& clip, const Launch& range, unsigned* finished,
                      cudaStream_t stream) {
  return range.computed == Dtype::kFloat64
             ? step_pass_in<Rule, double>(table, clip, range, finished, stream)
             : step_pass_in<Rule, float>(table, clip, range, finished, stream);
}

}  // namespace fusedstep::cuda
