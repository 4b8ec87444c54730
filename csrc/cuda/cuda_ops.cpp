// Registers the ops' implementations on NVIDIA GPUs.
#include <torch/csrc/stable/library.h>

#include "csrc/clip_ops.h"
#include "csrc/cuda/decompositions.h"
#include "csrc/cuda/passes.h"
#include "csrc/step_ops.h"

namespace {

using Clip = fusedstep::ClipOps<fusedstep::cuda::Passes>;
using Step = fusedstep::StepOps<fusedstep::cuda::Passes>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, m) {
  m.impl("total_norm", TORCH_BOX(&Clip::total_norm));
  m.impl("clip_by_norm_", TORCH_BOX(&Clip::clip_by_norm_));
  m.impl("step_", TORCH_BOX(&Step::step_));
  m.impl("table_norm_", TORCH_BOX(&Clip::table_norm_));
  m.impl("table_step_", TORCH_BOX(&Step::table_step_));
  m.impl("inverse_of_cholesky_factor", TORCH_BOX(&fusedstep::cuda::inverse_of_cholesky_factor));
  m.impl("eigh", TORCH_BOX(&fusedstep::cuda::eigh));
  m.impl("svd", TORCH_BOX(&fusedstep::cuda::svd));
}
