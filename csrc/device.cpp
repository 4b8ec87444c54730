// The devices in use: the one for CPU tensors and the one for CUDA tensors, and how Python hands
// them over.
#include "csrc/device.h"

#include <atomic>
#include <mutex>
#include <stdexcept>

#include "csrc/module.h"

namespace py = pybind11;

namespace fusedstep {
namespace {

std::atomic<const Device*> cpu_device{&kCpuDevice};
std::atomic<const Device*> cuda_device{nullptr};

// Why there is no CUDA device. The sentence has the same words wherever it is raised.
std::string no_cuda_reason = "_C_cuda was not loaded";
std::mutex no_cuda_mutex;

std::string no_cuda(const std::string& reason) {
  return "fusedstep: no CUDA kernels (" + reason +
         "); move the tensors to the CPU or reinstall with a CUDA toolkit that fits torch: see "
         "python -m fusedstep";
}

std::atomic<const Device*>* slot_of(const std::string& type) {
  return type == "cpu" ? &cpu_device : type == "cuda" ? &cuda_device : nullptr;
}

py::object capsule_of(const Device* device) {
  return device == nullptr ? py::object(py::none()) : py::capsule(device, kDeviceCapsule);
}

const Device* device_in(const py::object& object) {
  if (!PyCapsule_IsValid(object.ptr(), kDeviceCapsule)) {
    throw py::type_error("use_device: device must be a capsule named " +
                         std::string(kDeviceCapsule) + ", got " +
                         py::repr(object).cast<std::string>());
  }
  return static_cast<const Device*>(PyCapsule_GetPointer(object.ptr(), kDeviceCapsule));
}

py::object use_device(const std::string& type, const py::object& device,
                      const std::string& reason) {
  auto* const slot = slot_of(type);
  if (slot == nullptr) {
    throw py::value_error("use_device: type must be \"cpu\" or \"cuda\", got \"" + type + "\"");
  }
  const Device* given = nullptr;
  if (!device.is_none()) {
    given = device_in(device);
  } else if (slot == &cpu_device) {
    throw py::value_error("use_device: device must be a capsule where type is \"cpu\", got None");
  } else {
    const std::lock_guard lock(no_cuda_mutex);
    no_cuda_reason = reason;
  }
  return capsule_of(slot->exchange(given));
}

bool has_solvers(const std::string& type) {
  auto* const slot = slot_of(type);
  const Device* const device = slot != nullptr ? slot->load() : nullptr;
  return device != nullptr && device->eigh != nullptr;
}

}  // namespace

const Device& device_of(const Tensor& tensor) {
  const auto& slot = tensor.is_cuda() ? cuda_device : cpu_device;
  const Device* const device = slot.load(std::memory_order_acquire);
  if (device == nullptr) {
    const std::lock_guard lock(no_cuda_mutex);
    throw std::runtime_error(no_cuda(no_cuda_reason));
  }
  return *device;
}

void bind_device(py::module_& m) {
  m.def("use_device", &use_device, py::arg("type"), py::arg("device"), py::arg("reason") = "",
        R"(Sets the functions that the ops call for tensors of a type of device.

_C_cuda hands over those for "cuda" when fusedstep is imported. Those of CUDA compiled for the host
(tests/simt) can take the place of the CPU's: then ops on CPU tensors run the CUDA path.

Args:
    type: "cpu" or "cuda".
    device: A capsule named "fusedstep.Device"; None, for "cuda" only, for no device.
    reason: Why there is none, for the error that ops on CUDA tensors then raise.

Returns:
    The device that was in use, to be put back, or None.

Raises:
    ValueError: `type` is neither, or `device` is None for "cpu".
    TypeError: `device` is no such capsule.)");
  m.def("has_solvers", &has_solvers, py::arg("type"),
        "Whether the device for tensors of this type, as in torch.device.type, has "
        "inverse_of_cholesky_factor, eigh and svd of its own.");
  m.def("no_cuda", &no_cuda, py::arg("reason"),
        "The error message for CUDA tensors where there are no CUDA kernels.");
}

}  // namespace fusedstep
