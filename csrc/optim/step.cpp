// The ops step_ and table_step_: the step of any rule; and fusedstep._C.StepPlan.
#include "csrc/optim/step.h"

#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <numeric>
#include <string>

#include "csrc/module.h"
#include "csrc/optim/tensor_table.h"

namespace fusedstep {
namespace {

void check_states(const char* function, const TensorTable& table, const RuleGroups& groups) {
  const auto& counts = table.state_counts();
  check_length(function, "groups", groups.state_counts().size(), counts.size());
  for (size_t g = 0; g < counts.size(); ++g) {
    Arg(function, "groups", groups.state_counts()[g], g)
        .must(counts[g] < 0 || counts[g] == groups.state_counts()[g],
              "need as many states as its parameters have");
  }
}

void step_(const std::string& rule, const Tensors& params, const Tensors& grads,
           const Tensors& arrays, const std::vector<int64_t>& roles,
           const std::vector<int64_t>& array_counts, const std::vector<int64_t>& group_sizes,
           const std::vector<double>& groups, int64_t seed, const Tensors& lrs,
           const std::vector<int64_t>& lr_groups, std::optional<Tensor> norm,
           std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, double max_norm,
           bool skip_nonfinite) {
  constexpr const char* kFunction = "step_";
  const auto& entry = require_rule(kFunction, rule);
  Arg(kFunction, "params", params.size()).must(!params.empty(), "not be empty");
  const RuleGroups of_rule(kFunction, entry, groups, seed, lrs, lr_groups, params[0]);
  check_length(kFunction, "grads", grads.size(), params.size());
  std::vector<int64_t> positions(params.size());
  std::iota(positions.begin(), positions.end(), 0);
  TensorTable table;
  const std::vector<int64_t> first_elements(params.size());
  table.assign(kFunction, params, arrays, roles, array_counts, group_sizes, positions,
               first_elements);
  check_states(kFunction, table, of_rule);
  for (size_t i = 0; i < grads.size(); ++i) {
    const Arg grad(kFunction, "grads", grads[i], i);
    (void)grad.floating();
    grad.on_device_of(params[0]).must(same_layout(grads[i], params[i]),
                                      "have its parameter's shape and strides");
  }
  Arg(kFunction, "params", params.size()).must(table.refresh(grads, {}), "stay where they are");
  const StepOptions options{norm, grad_scale, found_inf, max_norm, skip_nonfinite};
  options.check(kFunction, params[0]);
  device_of(params[0]).run({.table = table.data(),
                            .groups = of_rule.bytes(),
                            .norm = {},
                            .step = StepWork{rule, options.clip()},
                            .device = params[0].get_device(),
                            .copy = nullptr});
}

// After TensorTable::open or table_refresh. norm_type 0: `norm` is given, or not wanted; else it is
// computed first.
void table_step_(int64_t address, int64_t plan_address, const Tensor& param, const Tensors& lrs,
                 std::optional<Tensor> norm, double norm_type, std::optional<Tensor> grad_scale,
                 std::optional<Tensor> found_inf) {
  constexpr const char* kFunction = "table_step_";
  auto& table = *reinterpret_cast<TensorTable*>(address);
  const auto& plan = *reinterpret_cast<const StepPlan*>(plan_address);
  Arg(kFunction, "table", "none").must(!table.empty(), "have gradients");
  Arg(kFunction, "param", param).must(table.is_on_device_of(param), "be on the table's device");
  const auto& rule = require_rule(kFunction, plan.rule);
  const RuleGroups groups(kFunction, rule, plan.values, plan.seed, lrs, plan.lr_groups, param);
  check_states(kFunction, table, groups);
  const StepOptions options{norm, grad_scale, found_inf, plan.max_norm, plan.skip_nonfinite};
  options.check(kFunction, param);
  std::optional<NormWork> norm_work;
  if (norm_type > 0) {
    Arg(kFunction, "norm", "None").must(norm.has_value(), "be given to be computed");
    norm_work = {norm_of(kFunction, norm_type), data_or_null<float>(grad_scale),
                 data_of<double>(*norm)};
  }
  const Device& device = device_of(param);
  device.run({.table = table.data(),
              .groups = groups.bytes(),
              .norm = norm_work,
              .step = StepWork{plan.rule, options.clip()},
              .device = param.get_device(),
              .copy = table.copy_on(device)});
}

}  // namespace

void bind_step_plan(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<StepPlan>(m, "StepPlan")
      .def(py::init([](std::string rule, std::vector<double> values, int64_t seed,
                       std::vector<int64_t> lr_groups, double max_norm, bool skip_nonfinite) {
             return StepPlan{std::move(rule),      std::move(values), seed,
                             std::move(lr_groups), max_norm,          skip_nonfinite};
           }),
           py::arg("rule"), py::arg("values"), py::arg("seed"), py::arg("lr_groups"),
           py::arg("max_norm"), py::arg("skip_nonfinite"))
      .def_property_readonly("address",
                             [](const StepPlan& plan) { return reinterpret_cast<int64_t>(&plan); });
}

}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // A rule of kernels/optim/rules, named by its file. `norm` (0-d float64), `grad_scale` and
  // `found_inf` are read on the device. `arrays` holds what each parameter has besides its
  // gradient, array_counts[i] of them for parameter i; `roles` says what each is for
  // (kernels/optim/table.h). `groups` holds, group after group, a value for each of the rule's
  // fields (fusedstep._C.rule_fields); lrs[i], a tensor, is the rate of group lr_groups[i]; `seed`,
  // the bits of an unsigned integer, that of all stochastic rounding.
  m.def(
      "step_(str rule, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] arrays, "
      "int[] roles, int[] array_counts, int[] group_sizes, float[] groups, int seed, "
      "Tensor[] lrs, int[] lr_groups, "
      "Tensor? norm=None, Tensor? grad_scale=None, Tensor? found_inf=None, float max_norm=-1.0, "
      "bool skip_nonfinite=False) -> ()");

  // What a table lists is written, after its gradients were taken over; `plan` is the address of a
  // fusedstep._C.StepPlan, `param` the first of the table's parameters.
  m.def(
      "table_step_(int table, int plan, Tensor(a!) param, Tensor[] lrs, Tensor(b!)? norm, "
      "float norm_type, Tensor? grad_scale, Tensor? found_inf) -> ()");
}

FUSEDSTEP_IMPL(m) {
  m.impl("step_", TORCH_BOX(&fusedstep::step_));
  m.impl("table_step_", TORCH_BOX(&fusedstep::table_step_));
}
