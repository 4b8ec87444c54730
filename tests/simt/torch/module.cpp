// A Python module with csrc/cuda's own Device, compiled for the host, and with what tests set and
// read in the stand-ins for CUDA, cuBLAS and cuSOLVER. Handed to fusedstep._C.use_device, it makes
// the ops run the CUDA path over CPU tensors (tests/support/on_host.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/cuda/device_table.h"
#include "csrc/cuda/solvers.h"
#include "csrc/device.h"
#include "tests/simt/torch/cuda_tensors.h"
#include "tests/simt/torch/solvers.h"

// What csrc/cuda asks of torch about CUDA devices; this module links them to itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
extern "C" AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
extern "C" AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  return AOTI_TORCH_SUCCESS;
}

namespace {

using solvers::settings;

void begin_capture() {
  simt::device.graph.clear();
  simt::device.capturing = true;
}

// Returns the number of blocks of each kernel that the graph holds.
std::vector<int64_t> end_capture() {
  simt::device.capturing = false;
  std::vector<int64_t> blocks;
  for (const auto& kernel : simt::device.graph) blocks.push_back(kernel.blocks);
  return blocks;
}

void replay() {
  for (const auto& kernel : simt::device.graph) kernel.run();
}

void begin_capture_elsewhere() {
  simt::device.capturing_elsewhere = true;
  simt::device.invalidated = false;
}

// Returns whether the capture is still valid.
bool end_capture_elsewhere() {
  simt::device.capturing_elsewhere = false;
  return !simt::device.invalidated;
}

// The end of hold(): everything asked for is done, in order.
void finish() {
  simt::device.hold = false;
  simt::device.finish(nullptr, true);
}

// Where the table lies that an op without one of its own borrows on a device's default stream.
int64_t borrowed_memory(int32_t device) {
  const fusedstep::TableData table{fusedstep::make_layout({fusedstep::Row{}}), {nullptr}, 1};
  const fusedstep::cuda::BorrowedTable borrowed(device, nullptr);
  borrowed->synchronize(table, {}, nullptr);
  return reinterpret_cast<int64_t>(borrowed->view().groups);
}

// How many matrices the pieces of a batch have, and that they follow one another.
std::vector<int64_t> pieces(int64_t batch, int64_t elements) {
  std::vector<int64_t> counts;
  int64_t expected = 0;
  fusedstep::cuda::in_pieces(batch, elements, [&](int64_t first, int64_t count) {
    counts.push_back(first == expected ? count : -1);
    expected += count;
  });
  return counts;
}

}  // namespace

PYBIND11_MODULE(fusedstep_simt, m) {
  m.attr("DEVICE") = pybind11::capsule(&fusedstep::kCudaDevice, fusedstep::kDeviceCapsule);
  m.def("seed", [](uint64_t seed) { simt::configure({.seed = seed}); });
  m.def("begin_capture", &begin_capture);
  m.def("end_capture", &end_capture);
  m.def("replay", &replay);
  m.def("begin_capture_elsewhere", &begin_capture_elsewhere);
  m.def("end_capture_elsewhere", &end_capture_elsewhere);
  m.def("hold", [] { simt::device.hold = true; });  // from here on kernels are late, as copies are
  m.def("finish", &finish);
  m.def("fail_next", [](const std::string& call) { simt::device.fail_next = call; });
  m.def("last_error", [] { return static_cast<int>(cudaPeekAtLastError()); });
  m.def("copies", [] { return simt::device.copies; });  // asked for so far
  m.def("launches", [] { return simt::device.launches; });
  m.def("allocations", [] { return simt::device.allocated.size(); });
  m.def("freed_too_early", [] { return simt::device.freed_too_early; });
  m.def("borrowed_memory", &borrowed_memory);
  m.def("pieces", &pieces);
  m.def("libraries_missing", [](bool missing) { settings.missing = missing; });
  m.def("gives_up", [](int64_t matrix) { settings.gives_up = matrix; });
  m.def("library_calls", [] { return settings.calls; });
  m.def("library_handles", [] { return settings.handles; });
  bind_cuda_tensors(m);
}
