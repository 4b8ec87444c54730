// Where a Python tensor lies, read without owning it: DLPack's C exchange API, which torch.Tensor
// provides from torch 2.10 on (https://dmlc.github.io/dlpack/latest/python_spec.html). torch's
// stable interface has no function that takes a Python tensor in torch 2.11.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "csrc/tensor.h"

namespace fusedstep::dlpack {

// The standard's structs, which have a stable ABI; what is not used here is left opaque.
constexpr int32_t kCpu = 1, kCuda = 2;  // types of devices

struct Device {
  int32_t type, index;
  bool operator==(const Device&) const = default;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const DataType&) const = default;
};

struct View {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;    // owned by the tensor, as the next
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  struct {
    uint32_t major, minor;
    void* previous;
  } header;
  void *allocate, *own, *to_python;
  int (*view)(void* tensor, View* out);
  void* current_stream;
};

inline const ExchangeApi* find_torch_api() {
  namespace py = pybind11;
  const py::object capsule =
      py::module_::import("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
  const void* found = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (found == nullptr) {
    throw py::error_already_set();
  }
  const auto* const api = static_cast<const ExchangeApi*>(found);
  if (api->header.major != 1 || api->view == nullptr) {
    throw std::runtime_error("fusedstep: torch must provide DLPack's exchange API, version 1");
  }
  return api;
}

// The caller has the interpreter's lock, which a static's own could not be waited for with.
inline const ExchangeApi& torch_api() {
  static const ExchangeApi* api = nullptr;
  if (api == nullptr) {
    api = find_torch_api();
  }
  return *api;
}

// False for what is no dense tensor with memory.
inline bool view_of(PyObject* tensor, View* out) {
  const bool viewed = torch_api().view(tensor, out) == 0;
  if (!viewed) {
    PyErr_Clear();
  }
  return viewed;
}

inline Geometry geometry_of(const View& view) {
  const auto dim = static_cast<size_t>(view.ndim);
  return {{view.shape, dim}, {view.strides, dim}};
}

// The standard's name for a dtype of the kernels.
inline DataType data_type_of(Dtype dtype) {
  constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4;
  constexpr DataType kTypes[] = {
      {},           {kFloat, 32, 1}, {kFloat, 64, 1}, {kBfloat, 16, 1}, {kFloat, 16, 1},
      {kInt, 8, 1}, {kUInt, 8, 1},   {kInt, 16, 1}};
  return kTypes[static_cast<int>(dtype)];
}

// The kernels' name for a view's dtype; nothing where they do not know it.
inline std::optional<Dtype> dtype_of(const View& view) {
  for (int i = 1; i <= static_cast<int>(Dtype::kInt16); ++i) {
    if (view.dtype == data_type_of(static_cast<Dtype>(i))) {
      return static_cast<Dtype>(i);
    }
  }
  return std::nullopt;
}

// What is needed of torch in Python, looked up once, under the interpreter's lock as above.
struct TorchNames {
  PyObject *tensor, *parameter;  // types
  PyObject *is_neg, *grad;       // of a tensor: the function, and the attribute's name
};

inline const TorchNames& torch_names() {
  static const TorchNames* names = nullptr;
  if (names == nullptr) {
    const auto own = [](const auto& found) { return pybind11::object(found).release().ptr(); };
    const auto torch = pybind11::module_::import("torch");
    const auto tensor = torch.attr("Tensor");
    names = new TorchNames{own(tensor), own(torch.attr("nn").attr("Parameter")),
                           own(tensor.attr("is_neg")), PyUnicode_InternFromString("grad")};
  }
  return *names;
}

inline pybind11::object checked(PyObject* owned) {
  if (owned == nullptr) {
    throw pybind11::error_already_set();
  }
  return pybind11::reinterpret_steal<pybind11::object>(owned);
}

// The gradient of a parameter, or None.
inline pybind11::object grad_of(PyObject* param) {
  return checked(PyObject_GetAttr(param, torch_names().grad));
}

// Whether memory holds the negative of the elements, which DLPack does not tell.
inline bool is_negated(PyObject* tensor) {
  return checked(PyObject_CallOneArg(torch_names().is_neg, tensor)).ptr() == Py_True;
}

}  // namespace fusedstep::dlpack
