// The float32 value of a bfloat16 parameter that has a master, a float32 copy.
#pragma once

#include "kernels/common/dtypes.h"

namespace fusedstep {

// The master, unless somebody wrote the parameter since the last step, which left it rounded: then
// what was written.
FUSEDSTEP_HD float master_or_written(float master, BFloat16 param) {
  return round_to_bfloat16(master).bits == param.bits ? master : widen(param);
}

}  // namespace fusedstep
