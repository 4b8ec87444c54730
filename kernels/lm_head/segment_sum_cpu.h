// Sums of rows by id on the CPU: any range of pieces by any thread, in two passes.
#pragma once

#include "kernels/lm_head/segment_sum.h"

namespace fusedstep::cpu {

// Pieces [begin, end). All pieces have been summed before the first collects.
void sum_pieces(const Segments& segments, int64_t begin, int64_t end);
void collect_heads(const Segments& segments, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
