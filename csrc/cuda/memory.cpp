// CUDA's memory and events as objects, and the check of CUDA's answers.
#include "csrc/cuda/memory.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

namespace fusedstep::cuda {
namespace {

// For destructors, which cannot raise: at exit the driver may be gone before the last table.
void drop(cudaError_t status) {
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
  }
}

}  // namespace

void check(cudaError_t status, const char* what) {
  drop(status);
  STD_TORCH_CHECK(status == cudaSuccess, "fusedstep: ", what,
                  " failed: ", cudaGetErrorString(status));
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

DeviceMemory::DeviceMemory(size_t bytes, cudaStream_t stream, bool capturing)
    : stream_(stream), outside_torch_(capturing) {
  if (outside_torch_) {
    RelaxedCapture relaxed;
    check(cudaMalloc(&data_, bytes), "allocating the tensor table");
  } else {
    // The reason is in what torch logs: this interface returns only that it failed.
    STD_TORCH_CHECK(
        aoti_torch_cuda_caching_allocator_raw_alloc(bytes, &data_) == AOTI_TORCH_SUCCESS,
        "fusedstep: allocating the tensor table failed: torch has no memory for it");
  }
}

DeviceMemory::~DeviceMemory() {
  if (outside_torch_) {
    RelaxedCapture relaxed;
    drop(cudaFree(data_));
  } else {
    (void)aoti_torch_cuda_caching_allocator_raw_delete(data_);
  }
}

// Delegates to the default constructor: if a call fails, the destructor frees what was allocated.
Staging::Staging(size_t bytes) : Staging() {
  RelaxedCapture relaxed;
  check(cudaHostAlloc(reinterpret_cast<void**>(&data_), bytes, cudaHostAllocDefault),
        "allocating page-locked memory");
  bytes_ = bytes;
  check(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "creating an event");
}

// Freeing does not wait for a copy, so this does.
Staging::~Staging() {
  RelaxedCapture relaxed;
  if (copied_ != nullptr) {
    drop(cudaEventSynchronize(copied_));
    drop(cudaEventDestroy(copied_));
  }
  drop(cudaFreeHost(data_));
}

bool Staging::idle() const {
  RelaxedCapture relaxed;
  const cudaError_t status = cudaEventQuery(copied_);
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();  // an answer, not a fault
    return false;
  }
  check(status, "asking whether a copy is done");
  return true;
}

void Staging::copy_to(std::byte* device_memory, size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(device_memory, data_, bytes, cudaMemcpyHostToDevice, stream),
        "sending the tensor table");
  check(cudaEventRecord(copied_, stream), "recording an event");
}

SideStream::SideStream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

SideStream::~SideStream() { drop(cudaStreamDestroy(stream_)); }

}  // namespace fusedstep::cuda
