// The norm pass on the CPU: any range of chunks by any thread, then one fold of the partial
// results.
#pragma once

#include "kernels/optim/norm.h"

namespace fusedstep::cpu {

// Writes partials[...] of the chunks [begin, end), from the first to the last.
void norm_chunks(const Table& table, Norm norm, int64_t begin, int64_t end, double* partials);

// The norm of gradients that were multiplied by *grad_scale (null: 1), in float64.
double fold_partials(Norm norm, const double* partials, int64_t count, const float* grad_scale);

}  // namespace fusedstep::cpu
