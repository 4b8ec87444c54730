// What a rule is given, and the registry in which each module finds its rules by name.
//
// A rule is a file kernels/optim/rules/<stem>.h with the namespace fusedstep::<stem> and in it
//   Group         the hyperparameters of one parameter group: doubles, flags as 0 or 1, each listed
//                 once by name in fields()
//   Coefficients  what the inner loop needs of them, combined in double and rounded to T once
//   Rule          with_variant(group, f) calls f with the variant that the group asks for
// and a variant has the number of its states, kStates, and two functions: coefficients(group,
// update) and update(param, grad, state, coefficients), the formula. rule.cpp.in, rule.cu.in and
// rule_double.cu.in become a source file for each rule when the modules are built.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/optim/clip.h"
#include "kernels/optim/table.h"

namespace fusedstep {

// A value of a group: its name, which is the one that Python gives it by, and the member.
template <typename Group>
struct Field {
  std::string_view name;
  double Group::*member;
};
template <typename Group>  // which clang 16 does not deduce by itself
Field(std::string_view, double Group::*) -> Field<Group>;

// The fields of a group and then those of one derived from it.
template <typename Base, size_t n, typename Group, size_t m>
constexpr std::array<Field<Group>, n + m> join(const std::array<Field<Base>, n>& base,
                                               const std::array<Field<Group>, m>& own) {
  std::array<Field<Group>, n + m> all = {};
  for (size_t i = 0; i < n; ++i) {
    all[i] = {base[i].name, base[i].member};
  }
  std::copy(own.begin(), own.end(), all.begin() + n);
  return all;
}

// One update of one tensor.
struct Update {
  double lr;
  double step;        // counts this update: 1 at the first
  double multiplier;  // of the gradient: unscaling, clipping and the sign of `maximize`
};

// Whether a variant leaves the parameter as it is (rules/rest.h).
template <typename Variant>
constexpr bool kRests = requires { Variant::kRests; };

// What every rule's groups begin with.
struct GroupHead {
  double lr;
  double maximize;
  double ema_decay;            // of the moving average of the parameters
  double stochastic_rounding;  // of parameters, to bfloat16
  double counted;              // 1: an earlier pass of this step has counted the update
  const float* lr_tensor;      // where it is not null, the rate is read there at every step
  uint64_t seed;               // of all stochastic rounding

  static constexpr auto fields() {
    return std::array{Field{"lr", &GroupHead::lr}, Field{"maximize", &GroupHead::maximize},
                      Field{"ema_decay", &GroupHead::ema_decay},
                      Field{"stochastic_rounding", &GroupHead::stochastic_rounding},
                      Field{"counted", &GroupHead::counted}};
  }
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

// What csrc/ needs to know of a rule; `Step` is the function that runs it.
template <typename Step>
struct RuleEntry {
  std::string_view name;
  std::vector<std::string_view> fields;  // of every rule's groups, then of this one's
  size_t group_bytes;
  // Makes a group at `at` of a value for each field, in their order.
  void (*make_group)(void* at, const double* values, const float* lr_tensor, uint64_t seed);
  int (*num_states)(const void* group);
  Step* step;
};

// Every rule that was linked into this module, in no particular order.
template <typename Step>
std::vector<RuleEntry<Step>>& rules() {
  static std::vector<RuleEntry<Step>> rules;
  return rules;
}

// Null where this module has no rule of that name.
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
std::vector<std::string_view> field_names() {
  std::vector<std::string_view> names;
  for (const auto& field : GroupHead::fields()) {
    names.push_back(field.name);
  }
  for (const auto& field : Rule::Group::fields()) {
    names.push_back(field.name);
  }
  return names;
}

template <typename Rule>
void make_group(void* at, const double* values, const float* lr_tensor, uint64_t seed) {
  auto& group = *new (at) GroupOf<Rule>{};
  group.head.lr_tensor = lr_tensor;
  group.head.seed = seed;
  for (const auto& field : GroupHead::fields()) {
    group.head.*field.member = *values++;
  }
  for (const auto& field : Rule::Group::fields()) {
    group.rule.*field.member = *values++;
  }
}

template <typename Rule>
int num_states(const void* group) {
  int count = 0;
  Rule::with_variant(static_cast<const GroupOf<Rule>*>(group)->rule,
                     [&](auto variant) { count = decltype(variant)::kStates; });
  return count;
}

static_assert(sizeof(GroupHead) == GroupHead::fields().size() * sizeof(double) +
                                       sizeof(const float*) + sizeof(uint64_t),
              "a member of GroupHead is missing in its fields()");

template <typename Group>
constexpr bool names_are_unique() {
  std::array<std::string_view, GroupHead::fields().size() + Group::fields().size()> names;
  size_t count = 0;
  for (const auto& field : GroupHead::fields()) {
    names[count++] = field.name;
  }
  for (const auto& field : Group::fields()) {
    names[count++] = field.name;
  }
  std::sort(names.begin(), names.end());
  return std::adjacent_find(names.begin(), names.end()) == names.end();
}

// A variable of this type makes a rule known.
template <typename Rule, typename Step>
struct RegisteredRule {
  using Group = typename Rule::Group;
  static_assert(names_are_unique<Group>(), "two fields have one name");
  static_assert(std::is_empty_v<Group> || sizeof(Group) == Group::fields().size() * sizeof(double),
                "a member of the rule's Group is missing in its fields()");

  RegisteredRule(std::string_view name, Step* step) {
    rules<Step>().push_back({name, field_names<Rule>(), sizeof(GroupOf<Rule>), make_group<Rule>,
                             num_states<Rule>, step});
  }
};

}  // namespace fusedstep

// The step pass on the CPU as csrc/ calls it: by a rule's name in the registry.
namespace fusedstep::cpu {

// Updates the elements from `begin` to before `end`; two calls may share a chunk.
using StepChunks = void(const Table& table, const Clip& clip, Position begin, Position end);

// Counts the update in every tensor's step; after all chunks, since all of them read the old count.
// `group_bytes`: of the rule.
inline void advance_steps(const Table& table, int64_t num_rows, size_t group_bytes,
                          const Clip& clip) {
  if (!decide(clip).skip) {
    const auto* const groups = static_cast<const std::byte*>(table.groups);
    for (int64_t i = 0; i < num_rows; ++i) {
      const Row& row = table.rows[i];
      const std::byte* const group = groups + row.group * group_bytes;
      if (row.step() != nullptr && reinterpret_cast<const GroupHead*>(group)->counted == 0) {
        *row.step() += 1;
      }
    }
  }
}

}  // namespace fusedstep::cpu
