// Decides, from the norm and the loss scale, by how much gradients are multiplied or that a step is
// skipped.
#pragma once

#include "kernels/optim/norm.h"

namespace fusedstep {

// Everything is read where it is: the pointers are to memory of the device that runs the step.
struct Clip {
  const double* norm;       // of the unscaled gradients; null where nothing asked for it
  const float* grad_scale;  // GradScaler's loss scale; null for 1
  const float* found_inf;   // GradScaler's verdict; null for 0
  double max_norm;          // below 0: do not clip
  bool skip_nonfinite;      // leave everything as it was where the norm is not finite
  bool skip_one = false;    // or where the multiplier is 1: for tensors that it would only rewrite
};

struct Decision {
  double multiplier;
  bool skip;
};

// torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)); a NaN norm gives NaN.
FUSEDSTEP_HD double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;
}

FUSEDSTEP_HD Decision decide(const Clip& clip) {
  Decision decision{1, clip.found_inf != nullptr && *clip.found_inf != 0};
  if (clip.norm != nullptr) {
    // The published norm is float32, so a norm that only float64 can hold counts as infinite.
    decision.skip |= clip.skip_nonfinite && !is_finite(static_cast<float>(*clip.norm));
    if (clip.max_norm >= 0) {
      decision.multiplier = clip_coefficient(*clip.norm, clip.max_norm);
    }
  }
  if (clip.grad_scale != nullptr) {
    decision.multiplier /= *clip.grad_scale;
  }
  decision.skip |= clip.skip_one && decision.multiplier == 1;
  return decision;
}

}  // namespace fusedstep
