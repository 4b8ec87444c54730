// Lion: the update rule, written once for every device.
//
// Chen et al. 2023, Algorithm 2 (https://arxiv.org/abs/2302.06675). The decay of the parameter is
// collected into a factor 1 - lr * weight_decay, as AdamW's is; torch.optim has no Lion.
#pragma once

#include "kernels/optim/rule.h"

namespace fusedstep::lion {

struct Group {
  double beta1, beta2, weight_decay;

  static constexpr auto fields() {
    return std::array{
        Field{"beta1", &Group::beta1},
        Field{"beta2", &Group::beta2},
        Field{"weight_decay", &Group::weight_decay},
    };
  }
};

template <typename T>
struct Coefficients {
  T grad;   // unscaling, clipping and the sign of `maximize` in one factor
  T decay;  // 1 - lr * weight_decay
  T beta1, one_minus_beta1;
  T beta2, one_minus_beta2;
  T lr;
};

// Zero and NaN are their own signs: 0 moves nothing, and a NaN is passed on.
template <typename T>
FUSEDSTEP_HD T sign(T x) {
  return x > 0 ? T(1) : (x < 0 ? T(-1) : x);
}

struct Variant {
  static constexpr int kStates = 1;  // exp_avg

  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group& group, const Update& update) {
    return {
        .grad = static_cast<T>(update.multiplier),
        .decay = static_cast<T>(1 - update.lr * group.weight_decay),
        .beta1 = static_cast<T>(group.beta1),
        .one_minus_beta1 = static_cast<T>(1 - group.beta1),
        .beta2 = static_cast<T>(group.beta2),
        .one_minus_beta2 = static_cast<T>(1 - group.beta2),
        .lr = static_cast<T>(update.lr),
    };
  }

  template <typename T>
  static FUSEDSTEP_HD void update(T& param, T grad, T (&state)[kStates], const Coefficients<T>& c) {
    grad *= c.grad;
    T& m = state[0];
    const T direction = sign(c.beta1 * m + c.one_minus_beta1 * grad);
    m = c.beta2 * m + c.one_minus_beta2 * grad;
    param = param * c.decay - c.lr * direction;
  }
};

struct Rule {
  using Group = lion::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group&, F&& f) {
    f(Variant{});
  }
};

}  // namespace fusedstep::lion
