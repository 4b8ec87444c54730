// The step pass on the CPU, for any rule: chunk by chunk, those first that the norm read last.
#pragma once

#include <algorithm>

#include "kernels/common/pages.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/storage.h"

namespace fusedstep::cpu {

template <typename Variant, typename T, typename Coefficients>
FUSEDSTEP_CLONES void update_tile(T* param, const T* grad, T* const* states, int n,
                                  const Coefficients& coefficients) {
  constexpr int kStates = Variant::kStates;
  constexpr int kSlots = kStates > 0 ? kStates : 1;
  T* slots[kSlots];
  std::copy(states, states + kStates, slots);
  const auto c = coefficients;  // a local copy: the stores below cannot change it
  FUSEDSTEP_IVDEP
  for (int i = 0; i < n; ++i) {
    T state[kSlots];
    for (int k = 0; k < kStates; ++k) {
      state[k] = slots[k][i];
    }
    Variant::update(param[i], grad[i], state, c);
    for (int k = 0; k < kStates; ++k) {
      slots[k][i] = state[k];
    }
  }
}

// Tile by tile where something has to be converted, else piece by piece where it lies.
template <typename Variant, typename T, typename Coefficients>
void update_range(const Storage<T>& storage, void* grad, int64_t begin, int size,
                  const Coefficients& coefficients) {
  constexpr int kBuffers = Variant::kStates > 0 ? Variant::kStates : 1;
  alignas(64) T param_buffer[kTile];
  alignas(64) T grad_buffer[kTile];
  alignas(64) T state_buffers[kBuffers][kTile];
  const bool direct = storage.template direct<Variant::kStates>();
  const int tile = direct ? kAnnounced : kTile;
  for (int i = 0; i < size; i += tile) {
    const int n = std::min(tile, size - i);
    const int64_t at = begin + i;
    T* states[kBuffers];
    for (int k = 0; k < Variant::kStates; ++k) {
      states[k] = storage.load_state(k, at, n, state_buffers[k]);
    }
    T* p = storage.load_param(at, n, param_buffer, kRests<Variant>);
    const T* g = load_tile<T>(grad, storage.row.grad_dtype, at, n, grad_buffer);
    if (direct) {
      announce_pages(p + n, n);
      announce_pages(g + n, n);
      for (int k = 0; k < Variant::kStates; ++k) {
        announce_pages(states[k] + n, n);
      }
    }
    update_tile<Variant, T>(p, g, states, n, coefficients);
    if constexpr (!kRests<Variant>) {
      storage.store_param(p, at, n);
    }
    storage.advance_average(p, at, n);
    storage.template store_states<Variant::kStates>(states, at, n);
  }
}

constexpr int64_t kRun = 16;  // chunks

// From `begin` to before `end`, the last run of chunks first: what the norm pass read last is still
// in the cache. Within a run it goes forward, as the processor does that fetches ahead.
template <typename Rule>
void step_chunks(const Table& table, const Clip& clip, Position begin, Position end) {
  const Decision decision = decide(clip);
  if (decision.skip) {
    return;
  }
  const auto* groups = static_cast<const GroupOf<Rule>*>(table.groups);
  const auto step_chunk = [&](int64_t c) {
    const Chunk chunk = locate(table, c);
    const int from = c == begin.chunk ? begin.element : 0;
    const int to = c == end.chunk ? end.element : chunk.size;
    const Row& row = table.rows[chunk.row];
    const auto& group = groups[row.group];
    const Update update = update_of(group.head, row.step(), decision.multiplier);
    Rule::with_variant(group.rule, [&](auto variant) {
      using Variant = decltype(variant);
      const auto run = [&](auto computed) {
        using T = decltype(computed);
        update_range<Variant, T>(Storage<T>{row, group.head, static_cast<uint32_t>(update.step)},
                                 table.grads[chunk.row], chunk.begin + from, to - from,
                                 Variant::template coefficients<T>(group.rule, update));
      };
      row.param_dtype == Dtype::kFloat64 ? run(double{}) : run(float{});
    });
  };
  int64_t last = end.element > 0 ? end.chunk + 1 : end.chunk;
  while (last > begin.chunk) {
    const int64_t first = std::max(begin.chunk, last - kRun);
    for (int64_t c = first; c < last; ++c) {
      step_chunk(c);
    }
    last = first;
  }
}

}  // namespace fusedstep::cpu
