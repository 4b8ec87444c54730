// A Python module with csrc/cuda's own Device, compiled for the host, and with what tests set and
// read in the stand-ins for CUDA, cuBLAS and cuSOLVER. Handed to fusedstep._C.use_device, it makes
// the ops run the CUDA path over CPU tensors (tests/support/on_host.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <ranges>

#include "csrc/cuda/device_table.h"
#include "csrc/cuda/solvers.h"
#include "csrc/device.h"
#include "tests/simt/torch/cuda_tensors.h"
#include "tests/simt/torch/solvers.h"

// What csrc/cuda asks of torch about CUDA devices; this module links them to itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = simt::device.current;
  return AOTI_TORCH_SUCCESS;
}
extern "C" AOTITorchError aoti_torch_cuda_caching_allocator_raw_alloc(uint64_t bytes, void** data) {
  return simt::cached_alloc(data, bytes) ? AOTI_TORCH_SUCCESS : AOTI_TORCH_FAILURE;
}
extern "C" AOTITorchError aoti_torch_cuda_caching_allocator_raw_delete(void* data) {
  simt::cached_free(data);
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

CUstream_st side_stream;

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

// Which table an op without one of its own borrows on a device's default stream.
int64_t borrowed_table(int32_t device) {
  const fusedstep::cuda::BorrowedTable borrowed(device, nullptr);
  return reinterpret_cast<int64_t>(&*borrowed);
}

// Of what torch's allocator gave out, how much is for the current stream alone.
int64_t cached_on_current() {
  return std::ranges::count(std::views::values(simt::device.cached), simt::device.current);
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
  m.def("cached", [] { return simt::device.cached.size(); });  // that torch's allocator gave out
  m.def("cached_on_current", &cached_on_current);
  m.def("use_side_stream", [](bool side) { simt::device.current = side ? &side_stream : nullptr; });
  m.def("freed_too_early", [] { return simt::device.freed_too_early; });
  m.def("borrowed_table", &borrowed_table);
  m.def("pieces", &pieces);
  m.def("libraries_missing", [](bool missing) { settings.missing = missing; });
  m.def("gives_up", [](int64_t matrix) { settings.gives_up = matrix; });
  m.def("host_work", [](int64_t bytes) { settings.host_work = bytes; });
  m.def("library_calls", [] { return settings.calls; });
  m.def("library_handles", [] { return settings.handles; });
  bind_cuda_tensors(m);
}
