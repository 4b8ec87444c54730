// Adagrad: the update rule, written once for every device.
//
// Duchi, Hazan and Singer 2011, Journal of Machine Learning Research 12, section 1.2, the diagonal
// form (https://jmlr.org/papers/v12/duchi11a.html). As in torch.optim, epsilon is added after the
// square root, the rate decays as lr / (1 + (t - 1) * lr_decay), and the sum begins as its owner
// sets it. Departure: torch multiplies the gradient by the rate before it divides; here after.
#pragma once

#include <cmath>

#include "kernels/optim/rule.h"

namespace fusedstep::adagrad {

struct Group {
  double lr_decay, weight_decay, eps;

  static constexpr auto fields() {
    return std::array{
        Field{"lr_decay", &Group::lr_decay},
        Field{"weight_decay", &Group::weight_decay},
        Field{"eps", &Group::eps},
    };
  }
};

template <typename T>
struct Coefficients {
  T grad;  // unscaling, clipping and the sign of `maximize` in one factor
  T l2;    // weight_decay
  T eps;
  T lr;  // decayed: lr / (1 + (t - 1) * lr_decay)
};

struct Variant {
  static constexpr int kStates = 1;  // sum

  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group& group, const Update& update) {
    return {
        .grad = static_cast<T>(update.multiplier),
        .l2 = static_cast<T>(group.weight_decay),
        .eps = static_cast<T>(group.eps),
        .lr = static_cast<T>(update.lr / (1 + (update.step - 1) * group.lr_decay)),
    };
  }

  template <typename T>
  static FUSEDSTEP_HD void update(T& param, T grad, T (&state)[kStates], const Coefficients<T>& c) {
    grad *= c.grad;
    grad = c.l2 != 0 ? grad + c.l2 * param : grad;
    T& sum = state[0];
    sum = sum + grad * grad;
    param = param - c.lr * (grad / (std::sqrt(sum) + c.eps));
  }
};

struct Rule {
  using Group = adagrad::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group&, F&& f) {
    f(Variant{});
  }
};

}  // namespace fusedstep::adagrad
