// What a rule is given, and the registry in which each module finds its rules by name.
//
// A rule is a file kernels/optim/rules/<stem>.h with the namespace fusedstep::<stem> and in it
//   Group         the hyperparameters of one parameter group: doubles only, flags as 0 or 1
//   Coefficients  what the inner loop needs of them, combined in double and rounded to T once
//   Rule          with_variant(group, f) calls f with the variant that the group asks for
// and a variant has the number of its states, kStates, and two functions: coefficients(group,
// update) and update(param, grad, state, coefficients), the formula. kernels/optim/rule.cpp.in and
// kernels/optim/rule.cu.in become a source file for each rule when the modules are built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/common/macros.h"

namespace fusedstep {

// One update of one tensor.
struct Update {
  double lr;
  double step;        // counts this update: 1 at the first
  double multiplier;  // of the gradient: unscaling, clipping and the sign of `maximize`
};

// What every rule's groups begin with; 8 bytes each.
struct GroupHead {
  const float* lr_tensor;  // where it is not null, the rate is read there at every step
  double lr;
  double maximize;
  double average_decay;  // of the moving average of the parameters
  double stochastic;     // parameters are rounded to bfloat16 stochastically
  uint64_t seed;
};

template <typename Rule>
struct GroupOf {
  GroupHead head;
  typename Rule::Group rule;
};

FUSEDSTEP_HD Update update_of(const GroupHead& group, const float* steps_done, double multiplier) {
  return {.lr = group.lr_tensor != nullptr ? *group.lr_tensor : group.lr,
          .step = steps_done != nullptr ? *steps_done + 1.0 : 0,
          .multiplier = group.maximize != 0 ? -multiplier : multiplier};
}

// What the adapters in csrc/ need to know of a rule; `Step` is the function that runs it.
template <typename Step>
struct RuleEntry {
  std::string_view name;
  size_t group_bytes;  // of GroupOf<Rule>
  size_t num_fields;   // doubles of Rule::Group
  int (*num_states)(const void* group);
  Step* step;
};

// Every rule that was linked into this module, in no particular order.
template <typename Step>
std::vector<RuleEntry<Step>>& rules() {
  static std::vector<RuleEntry<Step>> rules;
  return rules;
}

// Null where there is no rule of that name.
template <typename Step>
const RuleEntry<Step>* find_rule(std::string_view name) {
  for (const auto& rule : rules<Step>()) {
    if (rule.name == name) {
      return &rule;
    }
  }
  return nullptr;
}

template <typename Rule>
int num_states(const void* group) {
  int count = 0;
  Rule::with_variant(static_cast<const GroupOf<Rule>*>(group)->rule,
                     [&](auto variant) { count = decltype(variant)::kStates; });
  return count;
}

// A variable of this type makes a rule known.
template <typename Rule, typename Step>
struct RegisteredRule {
  RegisteredRule(std::string_view name, Step* step) {
    using Group = typename Rule::Group;
    constexpr size_t kFields = std::is_empty_v<Group> ? 0 : sizeof(Group) / sizeof(double);
    rules<Step>().push_back({name, sizeof(GroupOf<Rule>), kFields, num_states<Rule>, step});
  }
};

}  // namespace fusedstep
