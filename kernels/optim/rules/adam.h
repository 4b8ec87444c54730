// Adam and AdamW, with amsgrad: the update rule, written once for every device.
//
// Adam:    Kingma and Ba 2015, Algorithm 1 (https://arxiv.org/abs/1412.6980)
// AdamW:   Loshchilov and Hutter 2019, Algorithm 2 (https://arxiv.org/abs/1711.05101)
// amsgrad: Reddi, Kale and Kumar 2018, Algorithm 2 (https://openreview.net/forum?id=ryQu7f-RZ);
//          like torch.optim it keeps the maximum of the uncorrected second moment.
#pragma once

#include <cmath>

#include "kernels/optim/rule.h"

namespace fusedstep::adam {

// beta^n for a step count n by repeated squaring: only multiplications, so the same bits
// everywhere.
//
// pow() differs between C libraries and CUDA in the last bit. The relative error here is below
// n * 2^-53; where n is large enough for that to show, beta^n has long vanished compared with 1.
FUSEDSTEP_HD double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) {
      result *= base;
    }
    base *= base;
  }
  return result;
}

struct Group {
  double beta1, beta2, eps, weight_decay;
  double decoupled;  // 1: AdamW's decay of the parameter, 0: Adam's addition to the gradient
  double amsgrad;

  static constexpr auto fields() {
    return std::array{
        Field{"beta1", &Group::beta1},
        Field{"beta2", &Group::beta2},
        Field{"eps", &Group::eps},
        Field{"weight_decay", &Group::weight_decay},
        Field{"decoupled", &Group::decoupled},
        Field{"amsgrad", &Group::amsgrad},
    };
  }
};

template <typename T>
struct Coefficients {
  T grad;   // unscaling, clipping and the sign of `maximize` in one factor
  T decay;  // 1 - lr * weight_decay
  T l2;     // Adam's weight_decay; 0 for AdamW
  T beta1, one_minus_beta1;
  T beta2, one_minus_beta2;
  T step_size;                // lr / (1 - beta1^t)
  T inverse_sqrt_correction;  // 1 / sqrt(1 - beta2^t)
  T eps;
};

template <bool amsgrad>
struct Variant {
  static constexpr int kStates = amsgrad ? 3 : 2;  // exp_avg, exp_avg_sq, max_exp_avg_sq

  template <typename T>
  static FUSEDSTEP_HD Coefficients<T> coefficients(const Group& group, const Update& update) {
    const int64_t t = static_cast<int64_t>(update.step);
    const double correction1 = 1 - power(group.beta1, t);
    const double correction2 = 1 - power(group.beta2, t);
    return {
        .grad = static_cast<T>(update.multiplier),
        .decay = static_cast<T>(group.decoupled != 0 ? 1 - update.lr * group.weight_decay : 1),
        .l2 = static_cast<T>(group.decoupled != 0 ? 0 : group.weight_decay),
        .beta1 = static_cast<T>(group.beta1),
        .one_minus_beta1 = static_cast<T>(1 - group.beta1),
        .beta2 = static_cast<T>(group.beta2),
        .one_minus_beta2 = static_cast<T>(1 - group.beta2),
        .step_size = static_cast<T>(update.lr / correction1),
        .inverse_sqrt_correction = static_cast<T>(1 / std::sqrt(correction2)),
        .eps = static_cast<T>(group.eps),
    };
  }

  template <typename T>
  static FUSEDSTEP_HD void update(T& param, T grad, T (&state)[kStates], const Coefficients<T>& c) {
    grad *= c.grad;
    grad = c.l2 != 0 ? grad + c.l2 * param : grad;
    T& m = state[0];
    T& v = state[1];
    m = c.beta1 * m + c.one_minus_beta1 * grad;
    v = c.beta2 * v + c.one_minus_beta2 * grad * grad;
    T second_moment = v;
    if constexpr (amsgrad) {
      state[2] = state[2] >= v ? state[2] : v;
      second_moment = state[2];
    }
    const T denominator = std::sqrt(second_moment) * c.inverse_sqrt_correction + c.eps;
    param = param * c.decay - c.step_size * (m / denominator);
  }
};

struct Rule {
  using Group = adam::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group& group, F&& f) {
    group.amsgrad != 0 ? f(Variant<true>{}) : f(Variant<false>{});
  }
};

}  // namespace fusedstep::adam
