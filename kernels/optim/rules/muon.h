// Muon, with AdamW for all but hidden matrices: the elementwise parts, written once for every
// device.
//
// Muon:  Jordan 2024, https://kellerjordan.github.io/posts/muon/ and, as in torch.optim.Muon, a
//        buffer that is an average: B <- momentum B + (1 - momentum) g. Its step has three parts.
//        Two are groups here: `direction` writes what is to be made orthogonal in place of the
//        parameter, and `descent` takes the orthogonal matrix as the gradient. Between the two are
//        matrix products: orthogonalize_ in python/fusedstep/optim/newton_schulz.py.
// AdamW: kernels/optim/rules/adam.h. Its groups share the table, so the norm and the launch, with
// Muon's.
#pragma once

#include "kernels/optim/rule.h"
#include "kernels/optim/rules/adam.h"

namespace fusedstep::muon {

struct Group : adam::Group {  // weight_decay is that of either
  double momentum, nesterov;
  double use_muon;  // 0: AdamW
  double descent;   // 0: the direction, 1: the descent along it
  double ratio;     // of the descent's step to the rate, by the shape of the matrix

  static constexpr auto fields() {
    return join(adam::Group::fields(), std::array{
                                           Field{"momentum", &Group::momentum},
                                           Field{"nesterov", &Group::nesterov},
                                           Field{"use_muon", &Group::use_muon},
                                           Field{"descent", &Group::descent},
                                           Field{"ratio", &Group::ratio},
                                       });
  }
};

template <typename T>
struct DirectionCoefficients {
  T grad;        // unscaling, clipping and the sign of `maximize` in one factor
  T keep, take;  // the buffer's and the gradient's share: momentum and 1 - momentum
  T nesterov;
};

struct Direction {
  static constexpr int kStates = 1;  // momentum_buffer

  template <typename T>
  static FUSEDSTEP_HD DirectionCoefficients<T> coefficients(const Group& group,
                                                            const Update& update) {
    return {.grad = static_cast<T>(update.multiplier),
            .keep = static_cast<T>(group.momentum),
            .take = static_cast<T>(1 - group.momentum),
            .nesterov = static_cast<T>(group.nesterov)};
  }

  template <typename T>
  static FUSEDSTEP_HD void update(T& direction, T grad, T (&state)[kStates],
                                  const DirectionCoefficients<T>& c) {
    T& buffer = state[0];
    grad *= c.grad;
    buffer = c.keep * buffer + c.take * grad;
    direction = c.nesterov != 0 ? c.keep * buffer + c.take * grad : buffer;
  }
};

template <typename T>
struct DescentCoefficients {
  T decay;      // 1 - lr * weight_decay
  T step_size;  // lr * ratio
};

struct Descent {
  static constexpr int kStates = 0;

  template <typename T>
  static FUSEDSTEP_HD DescentCoefficients<T> coefficients(const Group& group,
                                                          const Update& update) {
    return {.decay = static_cast<T>(1 - update.lr * group.weight_decay),
            .step_size = static_cast<T>(update.lr * group.ratio)};
  }

  // The multiplier is in the direction already. C++ has no array of length 0.
  template <typename T>
  static FUSEDSTEP_HD void update(T& param, T orthogonal, [[maybe_unused]] T (&state)[1],
                                  const DescentCoefficients<T>& c) {
    param = param * c.decay - c.step_size * orthogonal;
  }
};

struct Rule {
  using Group = muon::Group;

  template <typename F>
  static FUSEDSTEP_HD void with_variant(const Group& group, F&& f) {
    if (group.use_muon == 0) {
      adam::Rule::with_variant(group, f);
    } else {
      group.descent != 0 ? f(Descent{}) : f(Direction{});
    }
  }
};

}  // namespace fusedstep::muon
