// The tensor table: from tensors to rows, and what may change between steps; its ops table_assign
// and table_refresh; and in Python fusedstep._C.TensorTable, which owns one, and the functions by
// which a step finds out whether an optimizer still has the same parameters and hyperparameters.
#include "csrc/optim/tensor_table.h"

#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include "csrc/checks.h"
#include "csrc/dlpack.h"
#include "csrc/module.h"
#include "kernels/optim/quantize.h"
#include "kernels/optim/random.h"

namespace py = pybind11;

namespace fusedstep {
namespace {

bool is_scale(int64_t role) { return role >= kScale && role < kScale + kMaxStates; }

// Whether an array's elements lie as its role asks: a scale for each block, one step, or an element
// for each of the parameter's.
bool fits_role(int64_t role, const Geometry& array, const Geometry& param, int64_t size) {
  if (role == kStep) {
    return numel_of(array) == 1;
  }
  if (is_scale(role)) {
    return numel_of(array) == blocks_of(size) && is_gapless(array);
  }
  return same_layout(array, param);
}

// How many elements of an array of this role a parameter needs, and in which dtypes they may be.
void check_array(const char* function, int64_t i, const Tensor& array, int64_t role, const Row& row,
                 const Tensor& param) {
  const auto dtype = dtype_of(array);
  const Dtype computed = compute_dtype(row.param_dtype);
  const bool wide = computed == Dtype::kFloat64;
  Arg(function, "roles", role, i)
      .must(role >= 0 && role < kNumRoles && row.dtypes[role] == Dtype::kNone,
            "be one of kernels/optim/table.h, each once a parameter");
  const Arg arg(function, "arrays", array, i);
  if (role == kStep) {
    arg.scalar(Dtype::kFloat32, param);
  } else if (role == kMaster) {
    arg.must(row.param_dtype == Dtype::kBFloat16 &&
                 (dtype == Dtype::kFloat32 || dtype == Dtype::kInt16 || dtype == Dtype::kUInt8),
             "be float32, int16 or uint8, of a bfloat16 parameter");
  } else if (is_scale(role)) {
    arg.must(dtype == Dtype::kFloat32, "be float32");
  } else if (role < kScale && !wide) {
    arg.must(dtype == computed || dtype == Dtype::kBFloat16 || dtype == Dtype::kInt8 ||
                 dtype == Dtype::kUInt8,
             "be float32, bfloat16, int8 or uint8, or float64 for a float64 parameter");
  } else {
    arg.must(dtype == computed, "be float32, or float64 for a float64 parameter");
  }
  arg.on_device_of(param);
  arg.must(fits_role(role, geometry_of(array), geometry_of(param), row.size),
           is_scale(role) ? "have one element for each block of its state"
                          : "have its parameter's shape and strides");
}

// Whether the random numbers of each chunk have one key (random.h), for elements that begin at
// `first` of the whole: no window ends within a chunk.
bool has_one_key_per_chunk(int64_t first, int64_t size) {
  return first % kChunkSize == 0 || first % kRandomWindow + size <= kRandomWindow;
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

// The slot of a parameter without arrays; raises unless kernels can take its elements.
TensorTable::Slot slot_of(const Arg<Tensor>& arg, const Tensor& param, const Tensor& first) {
  TensorTable::Slot slot;
  slot.row.param_dtype = arg.floating();
  arg.gapless().on_device_of(first);
  slot.row.param = param.data_ptr();
  slot.row.size = param.numel();
  const auto [sizes, strides] = geometry_of(param);
  slot.sizes.assign(sizes.begin(), sizes.end());
  slot.strides.assign(strides.begin(), strides.end());
  return slot;
}

}  // namespace

void TensorTable::assign(const char* function, const Tensors& params, const Tensors& arrays,
                         const std::vector<int64_t>& roles,
                         const std::vector<int64_t>& array_counts,
                         const std::vector<int64_t>& group_sizes,
                         const std::vector<int64_t>& positions,
                         const std::vector<int64_t>& first_elements) {
  check_length(function, "roles", roles.size(), arrays.size());
  check_length(function, "array_counts", array_counts.size(), params.size());
  check_length(function, "positions", positions.size(), params.size());
  check_length(function, "first_elements", first_elements.size(), params.size());
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
      Slot slot = slot_of(Arg(function, "params", param, i), param, params[0]);
      Row& row = slot.row;
      row.group = static_cast<int32_t>(g);
      row.position = static_cast<int32_t>(positions[i]);
      row.first_element = first_elements[i];
      Arg(function, "first_elements", row.first_element, i)
          .must(row.first_element >= 0 && has_one_key_per_chunk(row.first_element, row.size),
                "be 0 or more, and begin a chunk where the elements cross a window of random "
                "numbers");
      for (int64_t a = 0; a < array_counts[i]; ++a, ++next) {
        Arg(function, "array_counts", array_counts[i], i)
            .must(next < arrays.size(), "not exceed the arrays");
        check_array(function, next, arrays[next], roles[next], row, param);
        row.arrays[roles[next]] = arrays[next].data_ptr();
        row.dtypes[roles[next]] = *dtype_of(arrays[next]);
        slot.roles.push_back(roles[next]);
      }
      check_states(function, i, row, state_counts.back());
      slots.push_back(std::move(slot));
    }
  }
  check_length(function, "params", params.size(), slots.size());
  check_length(function, "arrays", arrays.size(), next);
  state_counts_ = state_counts;
  take(std::move(slots), params);
}

void TensorTable::assign(const char* function, const Tensors& tensors) {
  Arg(function, "tensors", tensors.size()).must(!tensors.empty(), "not be empty");
  std::vector<Slot> slots;
  for (size_t i = 0; i < tensors.size(); ++i) {
    slots.push_back(slot_of(Arg(function, "tensors", tensors[i], i), tensors[i], tensors[0]));
  }
  take(std::move(slots), tensors);
  refresh(tensors, {});
}

void TensorTable::take(std::vector<Slot> slots, const Tensors& tensors) {
  slots_ = std::move(slots);
  if (!tensors.empty()) {
    on_gpu_ = tensors[0].is_cuda();
    device_index_ = tensors[0].get_device();
  }
  lay_out({}, {});
}

bool TensorTable::refresh(const Tensors& grads, const std::vector<int64_t>& missing) {
  if (grads.size() + missing.size() != slots_.size()) {
    return false;
  }
  Active active(grads.size());
  for (size_t i = 0, skipped = 0; i < slots_.size(); ++i) {
    if (skipped < missing.size() && missing[skipped] == static_cast<int64_t>(i)) {
      ++skipped;
      continue;
    }
    if (active.slots.size() == grads.size()) {
      return false;  // `missing` is not ascending or names what does not exist
    }
    const Tensor& grad = grads[active.slots.size()];
    const Slot& slot = slots_[i];
    const auto dtype = dtype_of(grad);
    if (!is_floating(dtype) || !is_strided(grad) || !is_on_device_of(grad) ||
        !same_layout(geometry_of(grad), slot.geometry())) {
      return false;
    }
    active.add(i, *dtype, grad.data_ptr());
  }
  take_over(active);
  return true;
}

void TensorTable::take_over(const Active& active) {
  if (active.slots != active_ || active.dtypes != grad_dtypes_) {
    lay_out(active.slots, active.dtypes);
  }
  for (size_t row = 0; row < data_.grads.size(); ++row) {
    data_.grads[row] = active.addresses[data_.layout.order[row]];
  }
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

namespace {

// Reads the entries of a parameter's state, fastest in the order in which they were made.
class Entries {
 public:
  explicit Entries(PyObject* state) : state_(state) {}

  // The entry under a key, or null; not owned.
  PyObject* find(PyObject* key) {
    PyObject *next, *entry;
    if (PyDict_Next(state_, &at_, &next, &entry) && next == key) {
      return entry;
    }
    entry = PyDict_GetItemWithError(state_, key);
    if (entry == nullptr && PyErr_Occurred()) {
      throw py::error_already_set();
    }
    return entry;
  }

 private:
  PyObject* state_;
  Py_ssize_t at_ = 0;
};

}  // namespace

std::optional<TensorTable::Gradients> TensorTable::open(const py::list& params,
                                                        const py::object& grads,
                                                        const py::list& states,
                                                        const py::list& rows, const py::list& names,
                                                        bool sharded) {
  const size_t count = slots_.size();
  if (params.size() != count || rows.size() != count || names.size() != count) {
    return std::nullopt;
  }
  const dlpack::Device device =
      on_gpu_ ? dlpack::Device{dlpack::kCuda, device_index_} : dlpack::Device{dlpack::kCpu, 0};
  dlpack::View view;
  const auto lies_at = [&](PyObject* tensor, const void* data, Dtype dtype) {
    return dlpack::view_of(tensor, &view) && view.data == data && view.device == device &&
           view.dtype == dlpack::data_type_of(dtype);
  };
  const auto entries_lie = [&](const Slot& slot, PyObject* state, PyObject* keys) {
    Entries entries(state);
    for (size_t k = 0; k < slot.roles.size(); ++k) {
      PyObject* entry = entries.find(PyTuple_GET_ITEM(keys, k));
      py::object part;
      if (entry != nullptr && sharded) {
        part = py::getattr(entry, "_local_tensor", py::handle(entry));
        entry = part.ptr();
      }
      const int64_t role = slot.roles[k];
      if (entry == nullptr || !lies_at(entry, slot.row.arrays[role], slot.row.dtypes[role]) ||
          !fits_role(role, dlpack::geometry_of(view), slot.geometry(), slot.row.size)) {
        return false;
      }
    }
    return true;
  };
  Gradients found;
  Active active(count);
  for (size_t i = 0; i < count; ++i) {
    const Slot& slot = slots_[i];
    const Row& row = slot.row;
    PyObject* const param = PyList_GET_ITEM(params.ptr(), i);
    PyObject* const state =
        PyList_GET_ITEM(states.ptr(), PyLong_AsSsize_t(PyList_GET_ITEM(rows.ptr(), i)));
    if (!lies_at(param, row.param, row.param_dtype) ||
        !same_layout(dlpack::geometry_of(view), slot.geometry()) || !PyDict_Check(state) ||
        !entries_lie(slot, state, PyList_GET_ITEM(names.ptr(), i))) {
      return std::nullopt;
    }
    const py::object grad =
        grads.is_none() ? dlpack::grad_of(param)
                        : py::reinterpret_borrow<py::object>(PyList_GET_ITEM(grads.ptr(), i));
    if (grad.is_none()) {
      found.second.append(i);
      continue;
    }
    if (!dlpack::view_of(grad.ptr(), &view) || view.device != device ||
        (view.data == nullptr && row.size > 0) ||
        !same_layout(dlpack::geometry_of(view), slot.geometry()) ||
        dlpack::is_negated(grad.ptr())) {
      return std::nullopt;
    }
    const auto dtype = dlpack::dtype_of(view);
    if (!is_floating(dtype)) {
      return std::nullopt;
    }
    found.first.append(grad);
    active.add(i, *dtype, view.data);
  }
  if (!active.slots.empty()) {
    take_over(active);
  }
  return found;
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
                  const std::vector<int64_t>& group_sizes, const std::vector<int64_t>& positions,
                  const std::vector<int64_t>& first_elements) {
  reinterpret_cast<TensorTable*>(table)->assign("table_assign", params, arrays, roles, array_counts,
                                                group_sizes, positions, first_elements);
}

bool table_refresh(int64_t table, const Tensors& grads, const std::vector<int64_t>& missing) {
  return reinterpret_cast<TensorTable*>(table)->refresh(grads, missing);
}

// For gradients that are not what their memory says: torch would hand over temporary copies, whose
// addresses the table must not keep. The caller assigns again, from plain copies that it keeps.
bool refresh_nothing(int64_t, const Tensors&, const std::vector<int64_t>&) { return false; }

// Whether list[begin], list[begin + 1], ... are the items of `part`, the same objects.
bool holds(const py::list& list, size_t begin, PyObject* part) {
  const auto size = static_cast<size_t>(PyList_GET_SIZE(part));
  if (begin + size > list.size()) {
    return false;
  }
  for (size_t i = 0; i < size; ++i) {
    if (PyList_GET_ITEM(list.ptr(), begin + i) != PyList_GET_ITEM(part, i)) {
      return false;
    }
  }
  return true;
}

// Whether parameter groups have the keys and values in `entries`, one after the other: the same
// objects.
bool same_entries(const py::list& groups, const py::list& entries) {
  size_t next = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    PyObject* const group = PyList_GET_ITEM(groups.ptr(), g);
    if (!PyDict_Check(group)) {
      return false;
    }
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(group, &at, &key, &value); next += 2) {
      if (next + 2 > entries.size() || PyList_GET_ITEM(entries.ptr(), next) != key ||
          PyList_GET_ITEM(entries.ptr(), next + 1) != value) {
        return false;
      }
    }
  }
  return next == entries.size();
}

// The values of an optimizer's state in its order and an empty one, if its groups still list the
// same parameters, sizes[g] of them in group g, and its state has the same keys, all as objects;
// else None.
py::object states_of(const py::list& groups, const py::list& params,
                     const std::vector<size_t>& sizes, const py::object& state,
                     const py::list& keys) {
  size_t next = 0;
  if (groups.size() != sizes.size() || !PyDict_Check(state.ptr()) ||
      static_cast<size_t>(PyDict_GET_SIZE(state.ptr())) != keys.size()) {
    return py::none();
  }
  for (size_t g = 0; g < groups.size(); ++g) {
    const py::object listed = groups[g]["params"];
    if (!PyList_Check(listed.ptr()) || py::len(listed) != sizes[g] ||
        !holds(params, next, listed.ptr())) {
      return py::none();
    }
    next += sizes[g];
  }
  if (next != params.size()) {
    return py::none();
  }
  py::list states(keys.size() + 1);
  PyList_SET_ITEM(states.ptr(), keys.size(), PyDict_New());
  PyObject *key, *value;
  Py_ssize_t at = 0;
  for (size_t i = 0; PyDict_Next(state.ptr(), &at, &key, &value); ++i) {
    if (PyList_GET_ITEM(keys.ptr(), i) != key) {
      return py::none();
    }
    PyList_SET_ITEM(states.ptr(), i, Py_NewRef(value));
  }
  return states;
}

}  // namespace

void bind_tensor_table(py::module_& m) {
  py::class_<TensorTable>(m, "TensorTable")
      .def(py::init<>())
      .def_property_readonly("address",
                             [](TensorTable& table) { return reinterpret_cast<int64_t>(&table); })
      .def("open", &TensorTable::open, py::arg("params"), py::arg("grads"), py::arg("states"),
           py::arg("rows"), py::arg("names"), py::arg("sharded"))
      .def_property_readonly(
          "num_rows", [](const TensorTable& table) { return table.data().layout.rows.size(); })
      .def_property_readonly(
          "num_chunks", [](const TensorTable& table) { return table.data().layout.num_chunks(); })
      .def_property_readonly(
          "num_launches",
          [](const TensorTable& table) { return table.data().layout.launches.size(); })
      .def_property_readonly("layout_version",
                             [](const TensorTable& table) { return table.data().version; });
  m.def("has_one_key_per_chunk", &has_one_key_per_chunk, py::arg("first"), py::arg("size"));
  m.def("same_entries", &same_entries, py::arg("groups"), py::arg("entries"));
  m.def("states_of", &states_of, py::arg("groups"), py::arg("params"), py::arg("sizes"),
        py::arg("state"), py::arg("keys"));
}

}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // `table` is the address of a fusedstep._C.TensorTable, which remembers the parameters and their
  // arrays, since lists of tensors are expensive in eager mode. `roles` says what each array is for
  // (kernels/optim/table.h).
  m.def(
      "table_assign(int table, Tensor[] params, Tensor[] arrays, int[] roles, int[] array_counts, "
      "int[] group_sizes, int[] positions, int[] first_elements) -> ()");
  m.def("table_refresh(int table, Tensor[] grads, int[] missing) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CompositeExplicitAutograd, m) {
  m.impl("table_assign", TORCH_BOX(&fusedstep::table_assign));
  m.impl("table_refresh", TORCH_BOX(&fusedstep::table_refresh));
}

FUSEDSTEP_IMPL_LAZY(m) { m.impl("table_refresh", TORCH_BOX(&fusedstep::refresh_nothing)); }
