// The tensor table: from tensors to rows, and what may change between steps; its ops table_assign
// and table_refresh; and in Python fusedstep._C.TensorTable, which owns one, and the comparisons by
// identity, same_objects and same_items, by which a step finds out whether its table still fits.
#include "csrc/optim/tensor_table.h"

#include <torch/csrc/stable/library.h>

#include "csrc/checks.h"
#include "csrc/module.h"
#include "kernels/optim/quantize.h"

namespace py = pybind11;

namespace fusedstep {
namespace {

// How many elements of an array of this role a parameter needs, and in which dtypes they may be.
void check_array(const char* function, int64_t i, const Tensor& array, int64_t role, const Row& row,
                 const Tensor& param) {
  const auto dtype = dtype_of(array);
  const Dtype computed = compute_dtype(row.param_dtype);
  const bool wide = computed == Dtype::kFloat64;
  const bool is_scale = role >= kScale && role < kScale + kMaxStates;
  Arg(function, "roles", role, i)
      .must(role >= 0 && role < kNumRoles && row.dtypes[role] == Dtype::kNone,
            "be one of kernels/optim/table.h, each once a parameter");
  const Arg arg(function, "arrays", array, i);
  if (role == kStep) {
    arg.scalar(Dtype::kFloat32, param);
  } else if (role == kMaster) {
    arg.must(
        row.param_dtype == Dtype::kBFloat16 && (dtype == Dtype::kFloat32 || dtype == Dtype::kInt16),
        "be float32 or int16, of a bfloat16 parameter");
  } else if (is_scale) {
    arg.must(dtype == Dtype::kFloat32, "be float32");
  } else if (role < kScale && !wide) {
    arg.must(dtype == computed || dtype == Dtype::kBFloat16 || dtype == Dtype::kInt8 ||
                 dtype == Dtype::kUInt8,
             "be float32, bfloat16, int8 or uint8, or float64 for a float64 parameter");
  } else {
    arg.must(dtype == computed, "be float32, or float64 for a float64 parameter");
  }
  arg.on_device_of(param);
  if (is_scale) {
    arg.must(array.numel() == blocks_of(row.size) && is_gapless(array),
             "have one element for each block of its state");
  } else if (role != kStep) {
    arg.must(same_layout(array, param), "have its parameter's shape and strides");
  }
}

// All parameters of a group have the same states, and scales for those of 8 bits.
void check_states(const char* function, int64_t i, const Row& row, int64_t& count_of_group) {
  int64_t count = 0;
  for (int k = 0; k < kMaxStates; ++k) {
    const Dtype dtype = row.dtypes[kState + k];
    const bool coded = dtype == Dtype::kInt8 || dtype == Dtype::kUInt8;
    const bool scaled = row.dtypes[kScale + k] != Dtype::kNone;
    count += dtype != Dtype::kNone;
    if (coded != scaled) {
      const std::string got = "state " + std::to_string(k) +
                              (coded ? " of 8 bits without scales" : " with scales, not of 8 bits");
      Arg(function, "params", got, i).fail("have scales for its 8-bit states and for no others");
    }
  }
  Arg(function, "params", count, i)
      .must(count_of_group < 0 || count_of_group == count,
            "have as many states as the others of its group");
  count_of_group = count;
}

}  // namespace

void TensorTable::assign(const char* function, const Tensors& params, const Tensors& arrays,
                         const std::vector<int64_t>& roles,
                         const std::vector<int64_t>& array_counts,
                         const std::vector<int64_t>& group_sizes,
                         const std::vector<int64_t>& positions) {
  check_length(function, "roles", roles.size(), arrays.size());
  check_length(function, "array_counts", array_counts.size(), params.size());
  check_length(function, "positions", positions.size(), params.size());
  std::vector<Slot> slots;
  std::vector<int64_t> state_counts;
  size_t next = 0;  // array
  for (size_t g = 0; g < group_sizes.size(); ++g) {
    state_counts.push_back(-1);
    for (int64_t k = 0; k < group_sizes[g]; ++k) {
      const int64_t i = static_cast<int64_t>(slots.size());
      Arg(function, "group_sizes", group_sizes[g], g)
          .must(i < static_cast<int64_t>(params.size()), "not exceed the parameters");
      const Tensor& param = params[i];
      Slot slot{param, {}, {}, {}};
      Row& row = slot.row;
      const Arg arg(function, "params", param, i);
      row.param_dtype = arg.floating();
      arg.gapless().on_device_of(params[0]);
      row.param = param.data_ptr();
      row.size = param.numel();
      row.group = static_cast<int32_t>(g);
      row.position = static_cast<int32_t>(positions[i]);
      for (int64_t a = 0; a < array_counts[i]; ++a, ++next) {
        Arg(function, "array_counts", array_counts[i], i)
            .must(next < arrays.size(), "not exceed the arrays");
        check_array(function, next, arrays[next], roles[next], row, param);
        row.arrays[roles[next]] = arrays[next].data_ptr();
        row.dtypes[roles[next]] = *dtype_of(arrays[next]);
        slot.arrays.push_back(arrays[next]);
        slot.roles.push_back(roles[next]);
      }
      check_states(function, i, row, state_counts.back());
      slots.push_back(std::move(slot));
    }
  }
  check_length(function, "params", params.size(), slots.size());
  check_length(function, "arrays", arrays.size(), next);
  slots_ = std::move(slots);
  state_counts_ = state_counts;
  lay_out({}, {});
}

void TensorTable::assign(const char* function, const Tensors& tensors) {
  Arg(function, "tensors", tensors.size()).must(!tensors.empty(), "not be empty");
  std::vector<Slot> slots;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Slot slot{tensors[i], {}, {}, {}};
    const Arg arg(function, "tensors", tensors[i], i);
    slot.row.param_dtype = arg.floating();
    arg.gapless().on_device_of(tensors[0]);
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
  for (size_t row = 0; row < data_.grads.size(); ++row) {
    data_.grads[row] = addresses[data_.layout.order[row]];
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
  data_.layout = make_layout(rows);
  active_ = active;
  grad_dtypes_ = grad_dtypes;
  data_.grads.assign(rows.size(), nullptr);
  ++data_.version;
}

std::unique_ptr<DeviceCopy>* TensorTable::copy_on(const Device& device) {
  if (device_ != &device) {
    copy_.reset();
    device_ = &device;
  }
  return &copy_;
}

namespace {

void table_assign(int64_t table, const Tensors& params, const Tensors& arrays,
                  const std::vector<int64_t>& roles, const std::vector<int64_t>& array_counts,
                  const std::vector<int64_t>& group_sizes, const std::vector<int64_t>& positions) {
  reinterpret_cast<TensorTable*>(table)->assign("table_assign", params, arrays, roles, array_counts,
                                                group_sizes, positions);
}

bool table_refresh(int64_t table, const Tensors& grads, const std::vector<int64_t>& missing) {
  return reinterpret_cast<TensorTable*>(table)->refresh(grads, missing);
}

// For gradients that are not what their memory says: torch would hand over temporary copies, whose
// addresses the table must not keep. The caller assigns again, from plain copies that it keeps.
bool refresh_nothing(int64_t, const Tensors&, const std::vector<int64_t>&) { return false; }

// Whether dicts[i][key], for every key that it has, is still the very object that `objects` lists.
// A state that was replaced must not be written in its old place any more.
bool same_objects(const py::list& dicts, const py::tuple& keys, const py::list& objects) {
  size_t next = 0;
  for (const py::handle dict : dicts) {
    for (const py::handle key : keys) {
      PyObject* value = PyDict_GetItemWithError(dict.ptr(), key.ptr());  // borrowed
      if (value == nullptr) {
        if (PyErr_Occurred()) {
          throw py::error_already_set();
        }
        continue;
      }
      if (next >= objects.size() || PyList_GET_ITEM(objects.ptr(), next) != value) {
        return false;
      }
      ++next;
    }
  }
  return next == objects.size();
}

// Whether two lists hold the same objects in the same order.
bool same_items(const py::list& a, const py::list& b) {
  if (a.size() != b.size()) {
    return false;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (PyList_GET_ITEM(a.ptr(), i) != PyList_GET_ITEM(b.ptr(), i)) {
      return false;
    }
  }
  return true;
}

}  // namespace

void bind_tensor_table(py::module_& m) {
  py::class_<TensorTable>(m, "TensorTable")
      .def(py::init<>())
      .def_property_readonly("address",
                             [](TensorTable& table) { return reinterpret_cast<int64_t>(&table); })
      .def_property_readonly(
          "num_rows", [](const TensorTable& table) { return table.data().layout.rows.size(); })
      .def_property_readonly(
          "num_chunks", [](const TensorTable& table) { return table.data().layout.num_chunks(); })
      .def_property_readonly(
          "num_launches",
          [](const TensorTable& table) { return table.data().layout.launches.size(); })
      .def_property_readonly("layout_version",
                             [](const TensorTable& table) { return table.data().version; });
  m.def("same_objects", &same_objects, py::arg("dicts"), py::arg("keys"), py::arg("objects"));
  m.def("same_items", &same_items, py::arg("a"), py::arg("b"));
}

}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // `table` is the address of a fusedstep._C.TensorTable, which remembers the parameters and their
  // arrays, since lists of tensors are expensive in eager mode. `roles` says what each array is for
  // (kernels/optim/table.h).
  m.def(
      "table_assign(int table, Tensor[] params, Tensor[] arrays, int[] roles, int[] array_counts, "
      "int[] group_sizes, int[] positions) -> ()");
  m.def("table_refresh(int table, Tensor[] grads, int[] missing) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CompositeExplicitAutograd, m) {
  m.impl("table_assign", TORCH_BOX(&fusedstep::table_assign));
  m.impl("table_refresh", TORCH_BOX(&fusedstep::table_refresh));
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, Negative, m) {
  m.impl("table_refresh", TORCH_BOX(&fusedstep::refresh_nothing));
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, Conjugate, m) {
  m.impl("table_refresh", TORCH_BOX(&fusedstep::refresh_nothing));
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, ZeroTensor, m) {
  m.impl("table_refresh", TORCH_BOX(&fusedstep::refresh_nothing));
}
