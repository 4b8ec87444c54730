// Registers the ops' implementations on the CPU.
#include <torch/csrc/stable/library.h>

#include "csrc/clip_ops.h"
#include "csrc/cpu_passes.h"
#include "csrc/state_ops.h"
#include "csrc/step_ops.h"

namespace {

using Clip = fusedstep::ClipOps<fusedstep::CpuPasses>;
using Step = fusedstep::StepOps<fusedstep::CpuPasses>;
using State = fusedstep::StateOps;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("total_norm", TORCH_BOX(&Clip::total_norm));
  m.impl("clip_by_norm_", TORCH_BOX(&Clip::clip_by_norm_));
  m.impl("step_", TORCH_BOX(&Step::step_));
  m.impl("encode_state", TORCH_BOX(&State::encode_state));
  m.impl("decode_state", TORCH_BOX(&State::decode_state));
  m.impl("table_norm_", TORCH_BOX(&Clip::table_norm_));
  m.impl("table_step_", TORCH_BOX(&Step::table_step_));
}
