// Stochastic gradient descent with momentum, dampening and Nesterov's: the update rule, written
// once for every device.
//
// momentum: Polyak 1964; Nesterov's as Sutskever, Martens, Dahl and Hinton 2013, section 2
//           (http://proceedings.mlr.press/v28/sutskever13.html), but as in torch.optim the rate is
//           left out of the buffer and the buffer begins as the first gradient, undampened.
#pragma once

#include "kernels/optim/rule.h"

namespace fusedstep::sgd {

struct Group {
  double momentum, dampening, weight_decay, nesterov;

  static constexpr auto fields() {
    return std::array{
        Field{"momentum", &Group::momentum},
        Field{"dampening", &Group::dampening},
        Field{"weight_decay", &Group::weight_decay},
        Field{"nesterov", &Group::nesterov},
    };
  }
};

template <typename T>
struct Coefficients {
  T grad;        // unscaling, clipping and the sign of `maximize` in one factor
  T l2;          // weight_decay
  T keep, take;  // the buffer's and the gradient's share: momentum and 1 - dampening
  T momentum, lr;
};

template <bool momentum, bool nesterov>
struct Variant {
  static_assert(momentum || !nesterov);
  static constexpr int kStates = momentum ? 1 : 0;  // momentum_buffer

  // The buffer's first update makes it the gradient; `update.step` counts since there is a buffer.
  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group& group, const Update& update) {
    const bool first = update.step == 1;
    return {
        .grad = static_cast<T>(update.multiplier),
        .l2 = static_cast<T>(group.weight_decay),
        .keep = static_cast<T>(first ? 0 : group.momentum),
        .take = static_cast<T>(first ? 1 : 1 - group.dampening),
        .momentum = static_cast<T>(group.momentum),
        .lr = static_cast<T>(update.lr),
    };
  }

  // Without momentum the array is there because C++ has none of length 0.
  template <typename T>
  static FUSEDSTEP_HD void update(T& param, T grad, [[maybe_unused]] T (&state)[1],
                                  const Coefficients<T>& c) {
    grad *= c.grad;
    grad = c.l2 != 0 ? grad + c.l2 * param : grad;
    T direction = grad;
    if constexpr (momentum) {
      T& buffer = state[0];
      buffer = c.keep * buffer + c.take * grad;
      direction = nesterov ? grad + c.momentum * buffer : buffer;
    }
    param = param - c.lr * direction;
  }
};

struct Rule {
  using Group = sgd::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group& group, F&& f) {
    if (group.momentum == 0) {
      f(Variant<false, false>{});
    } else {
      group.nesterov != 0 ? f(Variant<true, true>{}) : f(Variant<true, false>{});
    }
  }
};

}  // namespace fusedstep::sgd
