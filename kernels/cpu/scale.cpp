// The step pass of kernels/rules/scale.h on the CPU.
#include "kernels/rules/scale.h"

#include "kernels/cpu/rules.h"
#include "kernels/cpu/step.h"

namespace fusedstep::cpu {

void scale_chunks(const Table& table, const Clip& clip, int64_t begin, int64_t end) {
  step_chunks<Scale>(table, clip, begin, end);
}

}  // namespace fusedstep::cpu
