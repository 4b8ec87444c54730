// Keeps the tensor table of a list of tensors: from tensors to rows, and what may change between
// steps.
#include "csrc/tensor_table.h"

#include "csrc/checks.h"
#include "kernels/optim/quantize.h"

namespace fusedstep {
namespace {

// How many elements of an array of this role a parameter needs, and in which dtypes they may be.
void require_array(const char* function, int64_t i, const Tensor& array, int64_t role,
                   const Row& row, const Tensor& param) {
  const auto dtype = dtype_of(array);
  const Dtype computed = compute_dtype(row.param_dtype);
  const bool wide = computed == Dtype::kFloat64;
  require(role >= 0 && role < kNumRoles && row.dtypes[role] == Dtype::kNone, function, "roles", i,
          "be one of kernels/optim/table.h, each once a parameter", role);
  if (role == kStep) {
    require_scalar(function, "arrays", i, array, Dtype::kFloat32, param);
    return;
  }
  bool fits = dtype == computed;
  const char* must = "be float32, or float64 for a float64 parameter";
  if (role == kMaster) {
    fits =
        row.param_dtype == Dtype::kBFloat16 && (dtype == Dtype::kFloat32 || dtype == Dtype::kInt16);
    must = "be float32 or int16, of a bfloat16 parameter";
  } else if (role >= kScale && role < kScale + kMaxStates) {
    fits = dtype == Dtype::kFloat32;
    must = "be float32";
  } else if (role < kScale && !wide) {
    fits = fits || dtype == Dtype::kBFloat16 || dtype == Dtype::kInt8 || dtype == Dtype::kUInt8;
    must = "be float32, bfloat16, int8 or uint8, or float64 for a float64 parameter";
  }
  require(fits, function, "arrays", i, must, "another dtype");
  require_same_device(function, "arrays", i, array, param);
  if (role >= kScale && role < kScale + kMaxStates) {
    require(array.numel() == blocks_of(row.size) && is_gapless(array), function, "arrays", i,
            "have one element for each block of its state", array.numel());
  } else {
    require(same_layout(array, param), function, "arrays", i,
            "have its parameter's shape and strides", "others");
  }
}

// All parameters of a group have the same states, and scales for those of 8 bits.
void require_states(const char* function, int64_t i, const Row& row, int64_t& count_of_group) {
  int64_t count = 0;
  for (int k = 0; k < kMaxStates; ++k) {
    const Dtype dtype = row.dtypes[kState + k];
    const bool coded = dtype == Dtype::kInt8 || dtype == Dtype::kUInt8;
    count += dtype != Dtype::kNone;
    require(coded == (row.dtypes[kScale + k] != Dtype::kNone), function, "params", i,
            "have scales for its 8-bit states and for no others", "something else");
  }
  require(count_of_group < 0 || count_of_group == count, function, "params", i,
          "have as many states as the others of its group", count);
  count_of_group = count;
}

}  // namespace

void TensorTable::assign(const char* function, const Tensors& params, const Tensors& arrays,
                         const std::vector<int64_t>& roles,
                         const std::vector<int64_t>& array_counts,
                         const std::vector<int64_t>& group_sizes,
                         const std::vector<int64_t>& positions) {
  require_length(function, "roles", roles.size(), arrays.size());
  require_length(function, "array_counts", array_counts.size(), params.size());
  require_length(function, "positions", positions.size(), params.size());
  std::vector<Slot> slots;
  std::vector<int64_t> state_counts;
  size_t next = 0;  // array
  for (size_t g = 0; g < group_sizes.size(); ++g) {
    state_counts.push_back(-1);
    for (int64_t k = 0; k < group_sizes[g]; ++k) {
      const int64_t i = static_cast<int64_t>(slots.size());
      require(i < static_cast<int64_t>(params.size()), function, "group_sizes", g,
              "not exceed the parameters", group_sizes[g]);
      const Tensor& param = params[i];
      Slot slot{param, {}, {}, {}};
      Row& row = slot.row;
      row.param_dtype = require_dtype(function, "params", i, param);
      require_gapless(function, "params", i, param);
      require_same_device(function, "params", i, param, params[0]);
      row.param = param.data_ptr();
      row.size = param.numel();
      row.group = static_cast<int32_t>(g);
      row.position = static_cast<int32_t>(positions[i]);
      for (int64_t a = 0; a < array_counts[i]; ++a, ++next) {
        require(next < arrays.size(), function, "array_counts", i, "not exceed the arrays",
                array_counts[i]);
        require_array(function, next, arrays[next], roles[next], row, param);
        row.arrays[roles[next]] = arrays[next].data_ptr();
        row.dtypes[roles[next]] = *dtype_of(arrays[next]);
        slot.arrays.push_back(arrays[next]);
        slot.roles.push_back(roles[next]);
      }
      require_states(function, i, row, state_counts.back());
      slots.push_back(std::move(slot));
    }
  }
  require_length(function, "params", params.size(), slots.size());
  require_length(function, "arrays", arrays.size(), next);
  slots_ = std::move(slots);
  state_counts_ = state_counts;
  lay_out({}, {});
}

void TensorTable::assign(const char* function, const Tensors& tensors) {
  require(!tensors.empty(), function, "tensors", -1, "not be empty", 0);
  std::vector<Slot> slots;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Slot slot{tensors[i], {}, {}, {}};
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
  for (size_t k = 0; k < slot.arrays.size(); ++k) {
    if (slot.arrays[k].data_ptr() != slot.row.arrays[slot.roles[k]]) {
      return false;
    }
  }
  return true;
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
    if (!is_floating(dtype) || !is_strided(grad) || !same_device(grad, slot.param) ||
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
