// The exponential moving average of parameters: Polyak and Juditsky 1992 in the form of Tarvainen
// and Valpola 2017, equation 3 (https://arxiv.org/abs/1703.01780).
#pragma once

#include "kernels/common/macros.h"

namespace fusedstep {

template <typename T>
struct Average {
  T decay, one_minus_decay;

  Average() = default;
  FUSEDSTEP_HD explicit Average(double decay)
      : decay(static_cast<T>(decay)), one_minus_decay(static_cast<T>(1 - decay)) {}

  FUSEDSTEP_HD T next(T average, T param) const {
    return decay * average + one_minus_decay * param;
  }
};

}  // namespace fusedstep
