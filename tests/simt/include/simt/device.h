// CUDA's memory, streams, events and graph capture, as far as host code under test uses them.
//
// Copies are late on purpose: they happen when a kernel runs on their stream or somebody waits, so
// that staging memory which was re-used too early shows. A captured kernel runs at replay. Tests
// can make kernels late too, let one call fail, and capture in another thread.
#pragma once

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
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
using cudaStream_t = CUstream_st*;
struct CUevent_st {
  cudaStream_t stream = nullptr;
  std::size_t after = 0;  // works on any stream that were asked for before it
};
using cudaEvent_t = CUevent_st*;

namespace simt {

// A copy or a kernel that was asked for and is not done yet.
struct Work {
  cudaStream_t stream;
  std::size_t number;
  std::function<void()> run;
  const void* reads = nullptr;  // where a copy takes its bytes from
};

struct CapturedKernel {
  std::function<void()> run;
  unsigned blocks;
};

// The null stream is the one that can be captured.
struct Device {
  std::deque<Work> works;
  std::size_t asked = 0;  // works so far
  bool hold = false;      // kernels stay works too, until somebody waits
  bool capturing = false;
  bool capturing_elsewhere = false;  // in another thread, in global mode
  bool invalidated = false;          // a capture, by a call that is forbidden while it goes on
  bool relaxed = false;              // what cudaThreadExchangeStreamCaptureMode was given
  std::vector<CapturedKernel> graph;
  std::size_t copies = 0;                  // asked for so far
  std::size_t launches = 0;                // of kernels, captured ones too
  std::map<void*, std::size_t> allocated;  // bytes
  std::size_t waits = 0;                   // of the host for the null stream so far
  int freed_too_early = 0;                 // page-locked memory that a copy was still to read
  std::string fail_next;                   // the call that fails, once
  cudaError_t last_error = cudaSuccess;
  cudaStream_t current = nullptr;        // torch's
  std::map<void*, cudaStream_t> cached;  // what torch's allocator gave out, and for which stream

  cudaError_t fail(cudaError_t error) { return last_error = error; }

  // For calls that global capture mode forbids to every thread while any stream is captured.
  cudaError_t begin_unsafe(const char* call) {
    if ((capturing || capturing_elsewhere) && !relaxed) {
      invalidated = true;
      return fail(cudaErrorStreamCaptureUnsupported);
    }
    return begin(call);
  }
  cudaError_t begin(const char* call) {
    if (fail_next != call) return cudaSuccess;
    fail_next.clear();
    return fail(cudaErrorMemoryAllocation);
  }

  void add(cudaStream_t stream, std::function<void()> run, const void* reads = nullptr) {
    works.push_back({stream, asked++, std::move(run), reads});
  }

  // In order: what was asked for on `stream`, or on all.
  void finish(cudaStream_t stream, bool all = false) {
    for (std::size_t i = 0; i < works.size();) {
      if (!all && works[i].stream != stream) {
        ++i;
        continue;
      }
      const Work work = std::move(works[i]);
      works.erase(works.begin() + static_cast<std::ptrdiff_t>(i));
      work.run();
    }
  }
};
inline Device device;

// Runs now, or with the graph that is being captured, or late where the test wants that.
inline void run_on(cudaStream_t stream, unsigned blocks, std::function<void()> kernel) {
  ++device.launches;
  if (device.capturing && stream == nullptr) {
    device.graph.push_back({std::move(kernel), blocks});
    return;
  }
  device.add(stream, std::move(kernel));
  if (!device.hold) device.finish(stream);
}

inline cudaError_t allocate(const char* call, void** memory, std::size_t bytes) {
  if (const cudaError_t error = device.begin_unsafe(call)) return error;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xa5, bytes);  // CUDA promises nothing either
  device.allocated[*memory] = bytes;
  return cudaSuccess;
}

// torch's caching allocator, which has memory where CUDA has none left. What it takes back serves
// the stream that it was allocated on at once: there it may be in use for as long as work lasts
// that was asked for before, on any other stream it must not be.
inline bool cached_alloc(void** memory, std::size_t bytes) {
  if (device.capturing && device.current == nullptr) std::abort();  // from the pool of a graph
  if (device.begin("cached_alloc")) return device.last_error = cudaSuccess, false;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xa5, bytes);
  device.cached[*memory] = device.current;
  return true;
}

inline void cached_free(void* memory) {
  if (memory == nullptr) return;
  const auto found = device.cached.find(memory);
  device.add(found->second, [memory] { std::free(memory); });
  device.cached.erase(found);
}

}  // namespace simt

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return simt::allocate("cudaMalloc", memory, bytes);
}

inline cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return simt::allocate("cudaHostAlloc", memory, bytes);
}

inline cudaError_t cudaFree(void* memory) {
  if (const cudaError_t error = simt::device.begin_unsafe("cudaFree")) return error;
  simt::device.finish(nullptr, true);  // as CUDA does, it waits
  ++simt::device.waits;
  simt::device.allocated.erase(memory);
  std::free(memory);
  return cudaSuccess;
}

// CUDA promises no wait here.
inline cudaError_t cudaFreeHost(void* memory) {
  for (const simt::Work& work : simt::device.works) {
    simt::device.freed_too_early += memory != nullptr && work.reads == memory;
  }
  return cudaFree(memory);
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream = nullptr) {
  // Inside a graph it would read `from` at every replay: no code under test may ask for that.
  if (simt::device.capturing && stream == nullptr) {
    return simt::device.fail(cudaErrorStreamCaptureUnsupported);
  }
  if (const cudaError_t error = simt::device.begin("cudaMemcpyAsync")) return error;
  ++simt::device.copies;
  simt::device.add(stream, [=] { std::memcpy(to, from, bytes); }, from);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = simt::device.begin_unsafe("cudaStreamSynchronize")) return error;
  simt::device.finish(stream);
  simt::device.waits += stream == nullptr;
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

// As CUDA does, it lets the stream's work come to its end.
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  simt::device.finish(stream);
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

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, simt::device.asked};
  return cudaSuccess;
}

inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = simt::device.begin_unsafe("cudaEventQuery")) return error;
  for (const simt::Work& work : simt::device.works) {
    if (work.stream == event->stream && work.number < event->after) {
      return simt::device.fail(cudaErrorNotReady);
    }
  }
  return cudaSuccess;
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = simt::device.begin_unsafe("cudaEventSynchronize")) return error;
  simt::device.finish(event->stream);
  simt::device.waits += event->stream == nullptr;
  return cudaSuccess;
}
