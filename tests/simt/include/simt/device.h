// CUDA's memory, streams, events and graph capture, as far as host code under test uses them.
//
// Copies are late on purpose: they happen when a kernel runs on their stream or somebody waits, so
// that staging memory which was re-used too early shows. A captured kernel runs at replay.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <vector>

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };
constexpr unsigned cudaHostAllocDefault = 0;
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaStreamNonBlocking = 1;

struct CUstream_st {};
struct CUevent_st {
  std::size_t after = 0;  // copies that were asked for before it
};
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

namespace simt {

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
  cudaStream_t stream;
};

// One device. The null stream is the one that can be captured.
struct Device {
  std::vector<Copy> copies;  // asked for and not done yet
  std::size_t done = 0;      // copies that are done
  bool capturing = false;
  bool relaxed = false;                      // what cudaThreadExchangeStreamCaptureMode was told
  std::vector<std::function<void()>> graph;  // kernels captured, in order
  std::set<void*> allocated;

  void finish_copies() {
    for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
    done += copies.size();
    copies.clear();
  }
  // Global capture mode forbids allocation while any stream is being captured.
  bool may_allocate() const { return !capturing || relaxed; }
};
inline Device device;

// Runs now, or with the graph that is being captured.
inline void run_on(cudaStream_t stream, std::function<void()> kernel) {
  if (device.capturing && stream == nullptr) {
    device.graph.push_back(std::move(kernel));
  } else {
    device.finish_copies();
    kernel();
  }
}

}  // namespace simt

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (!simt::device.may_allocate()) return cudaErrorStreamCaptureUnsupported;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xa5, bytes);  // CUDA promises nothing either
  simt::device.allocated.insert(*memory);
  return cudaSuccess;
}

inline cudaError_t cudaFree(void* memory) {
  if (!simt::device.may_allocate()) return cudaErrorStreamCaptureUnsupported;
  simt::device.finish_copies();  // as CUDA does, it waits
  simt::device.allocated.erase(memory);
  std::free(memory);
  return cudaSuccess;
}

inline cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}

inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream = nullptr) {
  // Inside a graph it would read `from` at every replay: no code under test may ask for that.
  if (simt::device.capturing && stream == nullptr) return cudaErrorStreamCaptureUnsupported;
  simt::device.copies.push_back({to, from, bytes, stream});
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  simt::device.finish_copies();
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = simt::device.capturing && stream == nullptr ? cudaStreamCaptureStatusActive
                                                        : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const bool relaxed = *mode == cudaStreamCaptureModeRelaxed;
  *mode = simt::device.relaxed ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
  simt::device.relaxed = relaxed;
  return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->after = simt::device.done + simt::device.copies.size();
  return cudaSuccess;
}

inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return simt::device.done >= event->after ? cudaSuccess : cudaErrorNotReady;
}
