// The step pass of kernels/rules/scale.h on the CPU.
#include "kernels/rules/scale.h"

#include "kernels/cpu/rules.h"
#include "kernels/cpu/step.h"

namespace fusedstep::cpu {

void scale_chunks(const Table& table, const Clip& clip, Position begin, Position end) {
  step_chunks<Scale>(table, clip, begin, end);
}

}  // namespace fusedstep::cpu
