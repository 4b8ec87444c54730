// Keeps the tensor table of a list of tensors: from tensors to rows, and what may change between
// steps.
#include "csrc/tensor_table.h"

#include "csrc/checks.h"

namespace fusedstep {
namespace {

Dtype compute_dtype(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

}  // namespace

void TensorTable::assign(const char* function, const Tensors& params, const Tensors& states,
                         const Tensors& steps, const std::vector<int64_t>& group_sizes,
                         const std::vector<int64_t>& state_counts) {
  require_length(function, "steps", steps.size(), params.size());
  require_length(function, "state_counts", state_counts.size(), group_sizes.size());
  std::vector<Slot> slots;
  for (size_t g = 0; g < group_sizes.size(); ++g) {
    require(state_counts[g] >= 0 && state_counts[g] <= kMaxStates, function, "state_counts", g,
            "be 0 to 3", state_counts[g]);
    for (int64_t k = 0; k < group_sizes[g]; ++k) {
      const int64_t i = static_cast<int64_t>(slots.size());
      require(i < static_cast<int64_t>(params.size()), function, "group_sizes", g,
              "not exceed the parameters", group_sizes[g]);
      const Tensor& param = params[i];
      Slot slot{param, {}, steps[i], {}};
      slot.row.param_dtype = require_dtype(function, "params", i, param);
      require_gapless(function, "params", i, param);
      require_same_device(function, "params", i, param, params[0]);
      require_scalar(function, "steps", i, steps[i], Dtype::kFloat32, param);
      slot.row.param = param.data_ptr();
      slot.row.step = static_cast<float*>(steps[i].data_ptr());
      slot.row.size = param.numel();
      slot.row.group = static_cast<int32_t>(g);
      slots.push_back(std::move(slot));
    }
  }
  require_length(function, "params", params.size(), slots.size());

  size_t next = 0;
  for (int k = 0; k < kMaxStates; ++k) {
    for (size_t i = 0; i < slots.size(); ++i) {
      Slot& slot = slots[i];
      if (k >= state_counts[slot.row.group]) {
        continue;
      }
      require(next < states.size(), function, "states", -1, "have one entry a parameter and state",
              states.size());
      const Tensor& state = states[next];
      require(dtype_of(state) == compute_dtype(slot.row.param_dtype), function, "states", next,
              "be float32, or float64 for a float64 parameter", "another dtype");
      require(same_device(state, slot.param) && same_layout(state, slot.param), function, "states",
              next, "have its parameter's device, shape and strides", "others");
      slot.row.states[k] = state.data_ptr();
      slot.states.push_back(state);
      ++next;
    }
  }
  require_length(function, "states", states.size(), next);
  slots_ = std::move(slots);
  state_counts_ = state_counts;
  lay_out({}, {});
}

void TensorTable::assign(const char* function, const Tensors& tensors) {
  require(!tensors.empty(), function, "tensors", -1, "not be empty", 0);
  std::vector<Slot> slots;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Slot slot{tensors[i], {}, std::nullopt, {}};
    slot.row.param_dtype = require_dtype(function, "tensors", i, tensors[i]);
    require_gapless(function, "tensors", i, tensors[i]);
    require_same_device(function, "tensors", i, tensors[i], tensors[0]);
    slot.row.param = tensors[i].data_ptr();
    slot.row.size = tensors[i].numel();
    slots.push_back(std::move(slot));
  }
  slots_ = std::move(slots);
  lay_out({}, {});
  refresh(tensors, {});
}

bool TensorTable::unmoved(const Slot& slot) const {
  if (slot.param.data_ptr() != slot.row.param || slot.param.numel() != slot.row.size ||
      dtype_of(slot.param) != slot.row.param_dtype) {
    return false;
  }
  for (size_t k = 0; k < slot.states.size(); ++k) {
    if (slot.states[k].data_ptr() != slot.row.states[k]) {
      return false;
    }
  }
  return !slot.step.has_value() || slot.step->data_ptr() == slot.row.step;
}

bool TensorTable::refresh(const Tensors& grads, const std::vector<int64_t>& missing) {
  if (grads.size() + missing.size() != slots_.size()) {
    return false;
  }
  std::vector<int32_t> active;
  std::vector<Dtype> dtypes;
  std::vector<void*> addresses;
  active.reserve(grads.size());
  dtypes.reserve(grads.size());
  addresses.reserve(grads.size());
  for (size_t i = 0, skipped = 0; i < slots_.size(); ++i) {
    if (skipped < missing.size() && missing[skipped] == static_cast<int64_t>(i)) {
      ++skipped;
      continue;
    }
    if (active.size() == grads.size()) {
      return false;  // `missing` is not ascending or names what does not exist
    }
    const Tensor& grad = grads[active.size()];
    const Slot& slot = slots_[i];
    const auto dtype = dtype_of(grad);
    if (!dtype.has_value() || !is_strided(grad) || !same_device(grad, slot.param) ||
        !same_layout(grad, slot.param) || !unmoved(slot)) {
      return false;
    }
    active.push_back(static_cast<int32_t>(i));
    dtypes.push_back(*dtype);
    addresses.push_back(grad.data_ptr());
  }
  if (active != active_ || dtypes != grad_dtypes_) {
    lay_out(active, dtypes);
  }
  for (size_t row = 0; row < layout_.rows.size(); ++row) {
    grads_[row] = addresses[layout_.order[row]];
  }
  return true;
}

void TensorTable::lay_out(const std::vector<int32_t>& active,
                          const std::vector<Dtype>& grad_dtypes) {
  std::vector<Row> rows;
  for (size_t i = 0; i < active.size(); ++i) {
    rows.push_back(slots_[active[i]].row);
    rows.back().grad_dtype = grad_dtypes[i];
  }
  layout_ = make_layout(rows);
  active_ = active;
  grad_dtypes_ = grad_dtypes;
  grads_.assign(rows.size(), nullptr);
  ++layout_version_;
}

Table TensorTable::host(const void* groups) const {
  return {layout_.rows.data(), grads_.data(), layout_.row_of_chunk.data(), groups,
          layout_.num_chunks()};
}

}  // namespace fusedstep
