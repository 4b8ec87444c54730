// The rule of a stand-alone clip: the tensor becomes the gradient times the clip coefficient.
#pragma once

#include "kernels/common/table.h"

namespace fusedstep {

// The table names the same memory as parameter and as gradient; the parameter is never read.
struct Scale {
  struct Group {};

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group&, F&& f) {
    f(Scale{});
  }

  template <typename T>
  struct Coefficients {
    T factor;
  };
  static constexpr int kStates = 0;

  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group&, double /*step*/,
                                                   double multiplier) {
    return {static_cast<T>(multiplier)};
  }

  template <typename T, typename States>
  static FUSEDSTEP_HD void update(T& param, T grad, States&, const Coefficients<T>& c) {
    param = grad * c.factor;
  }
};

}  // namespace fusedstep
