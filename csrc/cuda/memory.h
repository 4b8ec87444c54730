// CUDA's memory and events as objects, the check of CUDA's answers, and what is allowed in capture.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace fusedstep::cuda {

// Raises if a call failed. CUDA's last error is then cleared: it has been reported, and the check
// after the next launch must not see it again.
void check(cudaError_t status, const char* what);

bool is_capturing(cudaStream_t stream);

// While it lives, this thread may call what CUDA forbids, in every thread, while a stream is being
// captured: allocating, freeing, querying events. None of that becomes part of the graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Memory that only `stream` uses. It comes from torch's allocator, which can give what it holds in
// reserve, and goes back to it in the order of the stream: what is in flight there may still use
// it.
//
// While the stream is being captured it comes from CUDA itself, and lives as long as this object:
// the pool of a graph may hand out what earlier nodes of it write to again at every replay.
class DeviceMemory {
 public:
  // `stream` is torch's current one, of the current device.
  DeviceMemory(size_t bytes, cudaStream_t stream, bool capturing);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  cudaStream_t stream() const { return stream_; }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_;
  bool outside_torch_;
};

// Page-locked memory from which a copy may still be under way.
class Staging {
 public:
  explicit Staging(size_t bytes);
  ~Staging();
  Staging(const Staging&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool idle() const;  // the last copy from it is done
  void copy_to(std::byte* device_memory, size_t bytes, cudaStream_t stream);

 private:
  Staging() = default;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  cudaEvent_t copied_ = nullptr;
};

// A stream of its own, for what must not wait for another stream nor become part of its graph.
class SideStream {
 public:
  SideStream();
  ~SideStream();
  SideStream(const SideStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace fusedstep::cuda
