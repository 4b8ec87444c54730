// The step pass on the CPU, for any rule: chunk by chunk, from the last to the first.
#pragma once

#include <algorithm>

#include "kernels/common/clip.h"
#include "kernels/common/layout.h"
#include "kernels/cpu/tile.h"

namespace fusedstep::cpu {

template <typename Variant, typename T>
FUSEDSTEP_CLONES void update_tile(T* param, const T* grad, T* const* states, int n,
                                  const typename Variant::template Coefficients<T>& coefficients) {
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

template <typename Variant, typename T>
void update_range(const Row& row, void* grad, int64_t begin, int size,
                  const typename Variant::template Coefficients<T>& coefficients) {
  alignas(64) T param_buffer[kTile];
  alignas(64) T grad_buffer[kTile];
  const bool direct =
      stored_as_computed<T>(row.param_dtype) && stored_as_computed<T>(row.grad_dtype);
  const int tile = direct ? size : kTile;
  for (int i = 0; i < size; i += tile) {
    const int n = std::min(tile, size - i);
    const int64_t at = begin + i;
    T* states[kMaxStates];
    for (int k = 0; k < Variant::kStates; ++k) {
      states[k] = static_cast<T*>(row.states[k]) + at;
    }
    T* p = load_tile<T>(row.param, row.param_dtype, at, n, param_buffer);
    const T* g = load_tile<T>(grad, row.grad_dtype, at, n, grad_buffer);
    update_tile<Variant, T>(p, g, states, n, coefficients);
    store_tile<T>(p, row.param, row.param_dtype, at, n);
  }
}

// From `begin` to before `end`, the last chunk first: what the norm pass read last is still in the
// cache. A chunk may be shared by two callers: each element is for itself.
template <typename Rule>
void step_chunks(const Table& table, const Clip& clip, Position begin, Position end) {
  const Decision decision = decide(clip);
  if (decision.skip) {
    return;
  }
  const auto* groups = static_cast<const typename Rule::Group*>(table.groups);
  for (int64_t c = end.element > 0 ? end.chunk : end.chunk - 1; c >= begin.chunk; --c) {
    const Chunk chunk = locate(table, c);
    const int from = c == begin.chunk ? begin.element : 0;
    const int to = c == end.chunk ? end.element : chunk.size;
    const Row& row = table.rows[chunk.row];
    const auto& group = groups[row.group];
    const double step = row.step != nullptr ? *row.step + 1.0 : 0;
    Rule::with_variant(group, [&](auto variant) {
      using Variant = decltype(variant);
      const auto update = [&](auto computed) {
        using T = decltype(computed);
        update_range<Variant, T>(
            row, table.grads[chunk.row], chunk.begin + from, to - from,
            Variant::template coefficients<T>(group, step, decision.multiplier));
      };
      row.param_dtype == Dtype::kFloat64 ? update(double{}) : update(float{});
    });
  }
}

}  // namespace fusedstep::cpu
