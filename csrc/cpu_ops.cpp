// Registers the ops' implementations on the CPU.
#include <torch/csrc/stable/library.h>

#include "csrc/adam_ops.h"
#include "csrc/clip_ops.h"
#include "csrc/cpu_passes.h"

namespace {

using Clip = fusedstep::ClipOps<fusedstep::CpuPasses>;
using Adam = fusedstep::AdamOps<fusedstep::CpuPasses>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, m) {
  m.impl("total_norm", TORCH_BOX(&Clip::total_norm));
  m.impl("clip_by_norm_", TORCH_BOX(&Clip::clip_by_norm_));
  m.impl("adam_", TORCH_BOX(&Adam::adam_));
  m.impl("table_norm_", TORCH_BOX(&Clip::table_norm_));
  m.impl("table_adam_", TORCH_BOX(&Adam::table_adam_));
}
