// The step pass on the CPU as csrc/ calls it: by a rule's name in the registry.
#pragma once

#include "kernels/optim/clip.h"
#include "kernels/optim/layout.h"
#include "kernels/optim/rule.h"

namespace fusedstep::cpu {

// Updates the elements from `begin` to before `end`; two calls may share a chunk.
using StepChunks = void(const Table& table, const Clip& clip, Position begin, Position end);

// Counts the update in every tensor's step; after all chunks, since all of them read the old count.
inline void advance_steps(const Table& table, int64_t num_rows, const Clip& clip) {
  if (!decide(clip).skip) {
    for (int64_t i = 0; i < num_rows; ++i) {
      if (float* const step = table.rows[i].step()) {
        *step += 1;
      }
    }
  }
}

}  // namespace fusedstep::cpu
