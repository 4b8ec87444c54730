// The rule of a parameter without a gradient: it stays as it is, and only its moving average
// advances.
#pragma once

#include "kernels/optim/rule.h"

namespace fusedstep::rest {

struct Group {
  static constexpr std::array<Field<Group>, 0> fields() { return {}; }
};

template <typename T>
struct Coefficients {};

// The table names the same memory as parameter and as gradient; nothing is written to it.
struct Variant {
  static constexpr int kStates = 0;
  static constexpr bool kRests = true;

  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group&, const Update&) {
    return {};
  }

  template <typename T>
  static FUSEDSTEP_HD void update(T&, T, T (&)[1], const Coefficients<T>&) {}
};

struct Rule {
  using Group = rest::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group&, F&& f) {
    f(Variant{});
  }
};

}  // namespace fusedstep::rest
