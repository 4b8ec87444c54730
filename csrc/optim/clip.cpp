// The ops total_norm, clip_by_norm_, clip_list_ and table_norm_: the global norm and the clip.
#include <torch/csrc/stable/library.h>

#include "csrc/optim/plain_list.h"
#include "csrc/optim/step.h"
#include "csrc/optim/tensor_table.h"

namespace fusedstep {
namespace {

Tensor total_norm(const Tensors& tensors, double norm_type, std::optional<Tensor> grad_scale) {
  const Norm norm = norm_of("total_norm", norm_type);
  TensorTable table;
  table.assign("total_norm", tensors);
  check_scalar("total_norm", "grad_scale", grad_scale, Dtype::kFloat32, tensors[0]);
  const Tensor out = empty_on(tensors[0], {});
  device_of(out).run({.table = table.data(),
                      .groups = {},
                      .norm = NormWork{norm, data_or_null<float>(grad_scale), data_of<double>(out)},
                      .step = {},
                      .device = out.get_device(),
                      .copy = nullptr});
  return out;
}

// Scales what the table lists by the norm, after it has been computed if `work` says so. A factor
// of 1 writes nothing.
void clip(const char* function, const TableData& table, const Tensor& norm, double max_norm,
          bool skip_nonfinite, const std::optional<NormWork>& work) {
  const Rule& scale = require_rule(function, "scale");
  const std::vector<double> one_group(scale.fields.size());
  const RuleGroups groups(function, scale, one_group, 0, {}, {}, norm);
  Clip clip = StepOptions{norm, std::nullopt, std::nullopt, max_norm, skip_nonfinite}.clip();
  clip.skip_one = true;
  device_of(norm).run({.table = table,
                       .groups = groups.bytes(),
                       .norm = work,
                       .step = StepWork{"scale", clip},
                       .device = norm.get_device(),
                       .copy = nullptr});
}

void clip_by_norm_(const Tensors& tensors, const Tensor& norm, double max_norm) {
  constexpr const char* kFunction = "clip_by_norm_";
  TensorTable table;
  table.assign(kFunction, tensors);
  Arg(kFunction, "norm", norm).scalar(Dtype::kFloat64, tensors[0]);
  clip(kFunction, table.data(), norm, max_norm, false, std::nullopt);
}

void clip_list_(int64_t address, const Tensor& norm, const Tensor& published, double norm_type,
                double max_norm, bool skip_nonfinite) {
  constexpr const char* kFunction = "clip_list_";
  const auto& list = *reinterpret_cast<const PlainList*>(address);
  Arg(kFunction, "norm", norm)
      .scalar(Dtype::kFloat64, norm)
      .must(list.is_on_device_of(norm), "be on the list's device");
  Arg(kFunction, "published", published).scalar(Dtype::kFloat32, norm);
  const NormWork work{norm_of(kFunction, norm_type), nullptr, data_of<double>(norm),
                      data_of<float>(published)};
  if (max_norm >= 0) {
    clip(kFunction, list.data(), norm, max_norm, skip_nonfinite, work);
    return;
  }
  device_of(norm).run({.table = list.data(),
                       .groups = {},
                       .norm = work,
                       .step = {},
                       .device = norm.get_device(),
                       .copy = nullptr});
}

// After TensorTable::open or table_refresh.
void table_norm_(int64_t address, const Tensor& norm, double norm_type,
                 std::optional<Tensor> grad_scale) {
  constexpr const char* kFunction = "table_norm_";
  auto& table = *reinterpret_cast<TensorTable*>(address);
  Arg(kFunction, "table", "none").must(!table.empty(), "have gradients");
  Arg(kFunction, "norm", norm)
      .scalar(Dtype::kFloat64, norm)
      .must(table.is_on_device_of(norm), "be on the table's device");
  check_scalar(kFunction, "grad_scale", grad_scale, Dtype::kFloat32, norm);
  const NormWork work{norm_of(kFunction, norm_type), data_or_null<float>(grad_scale),
                      data_of<double>(norm)};
  const Device& device = device_of(norm);
  device.run({.table = table.data(),
              .groups = {},
              .norm = work,
              .step = {},
              .device = norm.get_device(),
              .copy = table.copy_on(device)});
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Norms are 0-d float64 on the tensors' device, where `grad_scale` is read, too.
  m.def("total_norm(Tensor[] tensors, float norm_type=2.0, Tensor? grad_scale=None) -> Tensor");
  m.def("clip_by_norm_(Tensor(a!)[] tensors, Tensor norm, float max_norm) -> ()");

  // The one and then the other of a fusedstep._C.PlainList, by its address. `published` is the norm
  // as float32. max_norm < 0: the norm alone. `skip_nonfinite`: no clip by a norm that is not
  // finite.
  m.def(
      "clip_list_(int list, Tensor(a!) norm, Tensor(b!) published, float norm_type, "
      "float max_norm, bool skip_nonfinite) -> ()");

  // Of the gradients of a table after `TensorTable.open` or a `table_refresh` that said true.
  m.def("table_norm_(int table, Tensor(a!) norm, float norm_type, Tensor? grad_scale) -> ()");
}

FUSEDSTEP_IMPL(m) {
  m.impl("total_norm", TORCH_BOX(&fusedstep::total_norm));
  m.impl("clip_by_norm_", TORCH_BOX(&fusedstep::clip_by_norm_));
  m.impl("clip_list_", TORCH_BOX(&fusedstep::clip_list_));
  m.impl("table_norm_", TORCH_BOX(&fusedstep::table_norm_));
}
