// The pseudo-inverses of tiny matrices on the CPU: eight at once, any range by any thread.
#pragma once

#include "kernels/linalg/tiny_problem.h"

namespace fusedstep::cpu {

// Matrices [begin, end), each of which has an element.
void tiny_pinv(const TinyPinv& p, int64_t begin, int64_t end);

}  // namespace fusedstep::cpu
