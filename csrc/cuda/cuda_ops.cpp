// Registers the ops' implementations on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/adam_ops.h"
#include "csrc/clip_ops.h"
#include "csrc/cuda/passes.h"

namespace {

using Clip = fusedstep::ClipOps<fusedstep::cuda::Passes>;
using Adam = fusedstep::AdamOps<fusedstep::cuda::Passes>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  m.impl("total_norm", TORCH_BOX(&Clip::total_norm));
  m.impl("clip_by_norm_", TORCH_BOX(&Clip::clip_by_norm_));
  m.impl("adam_", TORCH_BOX(&Adam::adam_));
  m.impl("table_norm_", TORCH_BOX(&Clip::table_norm_));
  m.impl("table_adam_", TORCH_BOX(&Adam::table_adam_));
}
