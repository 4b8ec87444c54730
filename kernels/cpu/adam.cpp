// The step pass of kernels/rules/adam.h on the CPU.
#include "kernels/rules/adam.h"

#include "kernels/cpu/rules.h"
#include "kernels/cpu/step.h"

namespace fusedstep::cpu {

void adam_chunks(const Table& table, const Clip& clip, Position begin, Position end) {
  step_chunks<Adam>(table, clip, begin, end);
}

}  // namespace fusedstep::cpu
