// QK-Clip (Kimi K2, https://arxiv.org/abs/2507.20534, section 2.1): scales the rows of those heads
// of a query or key weight whose largest attention logit exceeds a threshold.
//
//   gamma   = min(1, threshold / largest logit)   of a head
//   weight *= sqrt(gamma)                         of queries and of keys: a logit, a product of
//                                                 both, is scaled by gamma
#pragma once

#include <cmath>

#include "kernels/common/reduce.h"
#include "kernels/optim/table.h"

namespace fusedstep {

// Which heads the rows of a weight belong to. The weight may be a shard: some consecutive rows.
struct QkHeads {
  const float* max_logits;  // [heads], of the whole weight
  int64_t head_dim;         // rows of a head
  int64_t first_row;        // of the shard, in the whole weight
  int64_t rows;             // of the shard
  int64_t stride;           // elements in memory from a row to the next
};

// What the rows of a head are multiplied by. Only a finite logit scales. An infinite one would make
// the head zero for good: where queries and keys are zero, so are the gradients of both. NaN would
// spread to the weights.
FUSEDSTEP_HD double qk_factor(double max_logit, double threshold) {
  return max_logit > threshold && is_finite(max_logit) ? std::sqrt(threshold / max_logit) : 1;
}

// Cuts elements [begin, end) of a weight, in the order of memory, into runs of one head each: calls
// f(head, first element, element after the last). Row by row a head is one run; a transposed weight
// has a run for each head in every column.
template <typename F>
FUSEDSTEP_HD void for_each_run(const QkHeads& heads, int64_t begin, int64_t end, F&& f) {
  while (begin < end) {
    const int64_t line = begin / heads.stride;  // rows so far, where they begin again in a column
    const int64_t row = line % heads.rows;
    const int64_t head = (heads.first_row + row) / heads.head_dim;
    const int64_t next_head = (head + 1) * heads.head_dim - heads.first_row;  // its first row
    const int64_t rows = (next_head < heads.rows ? next_head : heads.rows) - row;
    const int64_t run_end = (line + rows) * heads.stride;
    const int64_t to = run_end < end ? run_end : end;
    f(head, begin, to);
    begin = to;
  }
}

namespace cpu {

// Scales the elements from `begin` to before `end` of the table's parameters. `table.groups`: the
// QkHeads of each row of the table. A head that stays as it is is neither read nor written.
void qk_clip(const Table& table, double threshold, Position begin, Position end);

}  // namespace cpu

}  // namespace fusedstep
