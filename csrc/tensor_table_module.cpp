// fusedstep._C.TensorTable: the table's lifetime and what tests ask of it; and the comparisons by
// identity, same_objects and same_items, by which a step learns whether its plan still fits.
#include "csrc/tensor_table_module.h"

#include <torch/csrc/stable/library.h>

#include "csrc/tensor_table.h"

namespace py = pybind11;

namespace fusedstep {
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
// addresses the table must not keep. The caller assigns anew, from tensors it made plain itself.
bool refresh_nothing(int64_t, const Tensors&, const std::vector<int64_t>&) { return false; }

// Whether dicts[i][key], for every key that it has, is still the very object that `objects`
// lists. A state that somebody replaced must not go on being written in its old place.
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
      .def_property_readonly("num_rows",
                             [](const TensorTable& table) { return table.layout().rows.size(); })
      .def_property_readonly("num_chunks",
                             [](const TensorTable& table) { return table.layout().num_chunks(); })
      .def_property_readonly(
          "num_launches", [](const TensorTable& table) { return table.layout().launches.size(); })
      .def_property_readonly("layout_version", &TensorTable::layout_version);
  m.def("same_objects", &same_objects, py::arg("dicts"), py::arg("keys"), py::arg("objects"));
  m.def("same_items", &same_items, py::arg("a"), py::arg("b"));
}

}  // namespace fusedstep

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
