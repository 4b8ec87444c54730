// The step pass on the CPU, for any rule: chunk by chunk, those first that the norm read last.
#pragma once

#include <algorithm>

#include "kernels/common/pages.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/storage.h"

namespace fusedstep::cpu {

// Parameter and gradient are widened to T and narrowed as they pass through the registers.
template <typename Variant, typename T, typename Element, typename Coefficients>
FUSEDSTEP_CLONES void update_tile(Element* param, const Element* grad, T* const* states, int n,
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
    T p = load_as<T>(param[i]);
    Variant::update(p, load_as<T>(grad[i]), state, c);
    if constexpr (!kRests<Variant>) {
      param[i] = store_as<Element>(p);
    }
    for (int k = 0; k < kStates; ++k) {
      slots[k][i] = state[k];
    }
  }
}

// Piece by piece where everything lies.
template <typename Variant, typename Element, typename T, typename Coefficients>
void update_in_place(const Storage<T>& storage, void* grad, int64_t begin, int size,
                     const Coefficients& coefficients) {
  auto* const param = static_cast<Element*>(storage.row.param) + begin;
  const auto* const gradient = static_cast<const Element*>(grad) + begin;
  for (int i = 0; i < size; i += kAnnounced) {
    const int n = std::min(kAnnounced, size - i);
    T* states[kMaxStates];
    announce_pages(param + i + n, n);
    announce_pages(gradient + i + n, n);
    for (int k = 0; k < Variant::kStates; ++k) {
      states[k] = static_cast<T*>(storage.row.arrays[kState + k]) + begin + i;
      announce_pages(states[k] + n, n);
    }
    update_tile<Variant>(param + i, gradient + i, states, n, coefficients);
    if constexpr (std::is_same_v<Element, T>) {
      storage.advance_average(param + i, begin + i, n);
    }
  }
}

// Tile by tile, to T and back.
template <typename Variant, typename T, typename Coefficients>
void update_converted(const Storage<T>& storage, void* grad, int64_t begin, int size,
                      const Coefficients& coefficients) {
  constexpr int kBuffers = Variant::kStates > 0 ? Variant::kStates : 1;
  alignas(64) T param_buffer[kTile];
  alignas(64) T grad_buffer[kTile];
  alignas(64) T state_buffers[kBuffers][kTile];
  for (int i = 0; i < size; i += kTile) {
    const int n = std::min(kTile, size - i);
    const int64_t at = begin + i;
    T* states[kBuffers];
    for (int k = 0; k < Variant::kStates; ++k) {
      states[k] = storage.load_state(k, at, n, state_buffers[k]);
    }
    T* p = storage.load_param(at, n, param_buffer, kRests<Variant>);
    const T* g = load_tile<T>(grad, storage.row.grad_dtype, at, n, grad_buffer);
    update_tile<Variant>(p, g, states, n, coefficients);
    if constexpr (!kRests<Variant>) {
      storage.store_param(p, at, n);
    }
    storage.advance_average(p, at, n);
    storage.template store_states<Variant::kStates>(states, at, n);
  }
}

template <typename Variant, typename T, typename Coefficients>
void update_range(const Storage<T>& storage, void* grad, int64_t begin, int size,
                  const Coefficients& coefficients) {
  if (storage.template in_place<Variant::kStates, T>()) {
    return update_in_place<Variant, T>(storage, grad, begin, size, coefficients);
  }
  if constexpr (std::is_same_v<T, float>) {
    if (storage.template in_place<Variant::kStates, BFloat16>()) {
      return update_in_place<Variant, BFloat16>(storage, grad, begin, size, coefficients);
    }
  }
  update_converted<Variant>(storage, grad, begin, size, coefficients);
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
