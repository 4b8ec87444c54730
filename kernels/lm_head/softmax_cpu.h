// Loss and gradient of rows of logits on the CPU: any range of a row's chunks by any thread.
#pragma once

#include "kernels/lm_head/softmax.h"

namespace fusedstep::cpu {

// Chunks [begin, end) of a row: sums and, if the rows are written, what scale_chunks needs over the
// logits. Then the whole row's results; then, if the rows are written, chunks [begin, end) of it.
void sum_chunks(const Softmax& softmax, int64_t row, int64_t begin, int64_t end);
void fold_row(const Softmax& softmax, int64_t row);
void scale_chunks(const Softmax& softmax, int64_t row, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
