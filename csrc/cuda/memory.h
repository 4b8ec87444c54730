// CUDA's memory and events as objects, the check of CUDA's answers, and what is allowed in capture.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace fusedstep::cuda {

// Raises if a call failed. CUDA's last error is then cleared: it has been reported, and the check
// after the next launch must not see it again.
void check(cudaError_t status, const char* what);

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

// Memory from CUDA itself, outside torch's pools: inside a graph capture, a pool may hand out
// memory that earlier nodes of the same graph write to again at every replay.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
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
