// The step pass on the CPU of every rule: what the adapters in csrc/ call.
#pragma once

#include "kernels/common/clip.h"
#include "kernels/common/layout.h"

namespace fusedstep::cpu {

void adam_chunks(const Table& table, const Clip& clip, Position begin, Position end);
void scale_chunks(const Table& table, const Clip& clip, Position begin, Position end);

// Counts the update in every tensor's step; after all chunks, since all of them read the old count.
inline void advance_steps(const Table& table, int64_t num_rows, const Clip& clip) {
  if (!decide(clip).skip) {
    for (int64_t i = 0; i < num_rows; ++i) {
      if (table.rows[i].step != nullptr) {
        *table.rows[i].step += 1;
      }
    }
  }
}

}  // namespace fusedstep::cpu
