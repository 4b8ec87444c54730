// Reads a list of plain Python tensors through DLPack; in Python fusedstep._C.PlainList.
#include "csrc/optim/plain_list.h"

#include <pybind11/stl.h>

#include "csrc/module.h"
#include "csrc/optim/memory.h"

namespace py = pybind11;

namespace fusedstep {
namespace {

// No subclass: what these do with their memory is theirs to say.
bool has_plain_type(PyObject* object) {
  const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == dlpack::torch_names().tensor || type == dlpack::torch_names().parameter;
}

// Whether the kernels can take what lies at the tensor's address, numel() elements of it. A lazy
// zero has no address.
bool is_plain(PyObject* tensor, dlpack::View* view) {
  if (!has_plain_type(tensor) || !dlpack::view_of(tensor, view)) {
    return false;
  }
  const Geometry geometry = dlpack::geometry_of(*view);
  return (view->device.type == dlpack::kCpu || view->device.type == dlpack::kCuda) &&
         is_floating(dlpack::dtype_of(*view)) && is_gapless(geometry) &&
         (view->data != nullptr || numel_of(geometry) == 0) && !dlpack::is_negated(tensor);
}

}  // namespace

// `apart`: whether they must not share memory.
bool PlainList::read(bool apart) {
  std::vector<Row> rows(tensors_.size());
  std::vector<Span> spans;
  spans.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    dlpack::View view;
    if (!is_plain(PyList_GET_ITEM(tensors_.ptr(), i), &view)) {
      return false;
    }
    if (i == 0) {
      device_ = view.device;
    }
    if (view.device != device_) {
      return false;
    }
    Row& row = rows[i];
    row.param = view.data;
    row.size = numel_of(dlpack::geometry_of(view));
    row.param_dtype = row.grad_dtype = *dlpack::dtype_of(view);
    if (row.size > 0) {
      const auto first = reinterpret_cast<int64_t>(view.data);
      spans.push_back({first, first + row.size * view.dtype.bits / 8 - 1});
    }
  }
  if (rows.empty() || (apart && !are_apart(std::move(spans)))) {
    return false;
  }
  data_ = TableData::in_place(rows);
  return true;
}

std::optional<PlainList> PlainList::of(const py::list& tensors) {
  PlainList list;
  list.tensors_ = tensors;
  return list.read(false) ? std::optional(std::move(list)) : std::nullopt;
}

std::optional<PlainList> PlainList::of_gradients(const py::list& parameters) {
  PlainList list;
  for (size_t i = 0; i < parameters.size(); ++i) {
    PyObject* const parameter = PyList_GET_ITEM(parameters.ptr(), i);
    if (!has_plain_type(parameter)) {
      return std::nullopt;
    }
    const py::object grad = dlpack::grad_of(parameter);
    if (!grad.is_none()) {
      list.tensors_.append(grad);
    }
  }
  return list.read(true) ? std::optional(std::move(list)) : std::nullopt;
}

bool PlainList::is_on_device_of(const Tensor& tensor) const {
  return device_.type == dlpack::kCuda ? tensor.is_cuda() && tensor.get_device() == device_.index
                                       : tensor.is_cpu();
}

void bind_plain_list(py::module_& m) {
  py::class_<PlainList>(m, "PlainList")
      .def_static("of", &PlainList::of, py::arg("tensors"))
      .def_static("of_gradients", &PlainList::of_gradients, py::arg("parameters"))
      .def_property_readonly("tensors", &PlainList::tensors)
      .def_property_readonly(
          "address", [](const PlainList& list) { return reinterpret_cast<int64_t>(&list); });
}

}  // namespace fusedstep
