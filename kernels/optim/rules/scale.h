// The rule of a stand-alone clip: the tensor becomes the gradient times the clip coefficient. Where
// that is 1 a clip asks for no step at all (Clip::skip_one): a product by 1 has the same bits.
#pragma once

#include "kernels/optim/rule.h"

namespace fusedstep::scale {

struct Group {
  static constexpr std::array<Field<Group>, 0> fields() { return {}; }
};

template <typename T>
struct Coefficients {
  T factor;
};

// The table names the same memory as parameter and as gradient; the parameter is never read.
struct Variant {
  static constexpr int kStates = 0;

  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group&, const Update& update) {
    return {static_cast<T>(update.multiplier)};
  }

  template <typename T>
  static FUSEDSTEP_HD void update(T& param, T grad, T (&)[1], const Coefficients<T>& c) {
    param = grad * c.factor;
  }
};

struct Rule {
  using Group = scale::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group&, F&& f) {
    f(Variant{});
  }
};

}  // namespace fusedstep::scale
