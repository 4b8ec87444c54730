// The copy of a tensor table in GPU memory.
#include "csrc/cuda/device_table.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

namespace fusedstep::cuda {
namespace {

// While it lives, this thread may allocate and copy although a stream is being captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

constexpr size_t kAlign = 16;
size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

template <typename T>
size_t bytes_of(const std::vector<T>& values) {
  return values.size() * sizeof(T);
}

}  // namespace

void check(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, "fusedstep: ", what,
                  " failed: ", cudaGetErrorString(status));
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  RelaxedCapture relaxed;
  check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes), "allocating the tensor table");
}

// Errors are dropped on purpose: at exit the driver may be gone before the last table.
DeviceMemory::~DeviceMemory() {
  RelaxedCapture relaxed;
  cudaFree(data_);
}

Staging::Staging(size_t size) : bytes(size) {
  RelaxedCapture relaxed;
  check(cudaHostAlloc(reinterpret_cast<void**>(&data), bytes, cudaHostAllocDefault),
        "allocating page-locked memory");
  check(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming), "creating an event");
}

Staging::~Staging() {
  RelaxedCapture relaxed;
  cudaEventDestroy(copied);
  cudaFreeHost(data);
}

void DeviceTable::synchronize(const TensorTable& table, const void* groups, size_t groups_bytes,
                              cudaStream_t stream) {
  const bool capturing = is_capturing(stream);
  const Layout& layout = table.layout();
  const size_t grads_bytes = bytes_of(table.grads());

  std::vector<std::byte> often(aligned(groups_bytes) + grads_bytes);
  std::copy_n(static_cast<const std::byte*>(groups), groups_bytes, often.data());
  std::memcpy(often.data() + aligned(groups_bytes), table.grads().data(), grads_bytes);

  const bool laid_out = layout_version_ == table.layout_version() && groups_bytes_ == groups_bytes;
  const bool current = laid_out && std::memcmp(sent_.data(), often.data(), often.size()) == 0;
  if (!current) {
    // A captured graph goes on reading its table at every replay: leave it and begin another.
    const bool keep = laid_out && !captured_;
    if (!keep) {
      place(table, groups_bytes, capturing);
    }
    std::memcpy(sent_.data(), often.data(), often.size());
    send(0, keep ? often.size() : sent_.size(), stream, capturing);
  }
  captured_ = captured_ || capturing;
  view_.num_chunks = layout.num_chunks();
}

void DeviceTable::place(const TensorTable& table, size_t groups_bytes, bool capturing) {
  const Layout& layout = table.layout();
  const size_t grads_at = aligned(groups_bytes);
  const size_t rows_at = aligned(grads_at + bytes_of(table.grads()));
  const size_t chunks_at = aligned(rows_at + bytes_of(layout.rows));
  const size_t partials_at = aligned(chunks_at + bytes_of(layout.row_of_chunk));
  const size_t counters_at = partials_at + layout.num_chunks() * sizeof(double);
  const size_t total = counters_at + (1 + layout.rows.size()) * sizeof(unsigned);

  if (captured_) {
    captured_memory_.push_back(std::move(memory_));
    captured_ = false;
  }
  if (memory_ == nullptr || memory_->bytes() < total) {
    memory_ = std::make_unique<DeviceMemory>(capturing ? total : total + total / 2);
  }
  sent_.assign(total, std::byte{0});
  std::memcpy(sent_.data() + rows_at, layout.rows.data(), bytes_of(layout.rows));
  std::memcpy(sent_.data() + chunks_at, layout.row_of_chunk.data(), bytes_of(layout.row_of_chunk));

  std::byte* base = memory_->data();
  view_ = {reinterpret_cast<const Row*>(base + rows_at),
           reinterpret_cast<void* const*>(base + grads_at),
           reinterpret_cast<const int32_t*>(base + chunks_at), base, layout.num_chunks()};
  partials_ = reinterpret_cast<double*>(base + partials_at);
  counters_ = reinterpret_cast<unsigned*>(base + counters_at);
  groups_bytes_ = groups_bytes;
  layout_version_ = table.layout_version();
}

void DeviceTable::send(size_t begin, size_t end, cudaStream_t stream, bool capturing) {
  ++uploads_;
  const size_t bytes = end - begin;
  if (capturing) {
    // Now and outside the graph: a copy inside it would read host memory at every replay.
    RelaxedCapture relaxed;
    cudaStream_t aside;
    check(cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking), "creating a stream");
    check(cudaMemcpyAsync(memory_->data() + begin, sent_.data() + begin, bytes,
                          cudaMemcpyHostToDevice, aside),
          "sending the tensor table");
    check(cudaStreamSynchronize(aside), "sending the tensor table");
    check(cudaStreamDestroy(aside), "destroying a stream");
    return;
  }
  Staging& staging = free_staging(bytes);
  std::memcpy(staging.data, sent_.data() + begin, bytes);
  check(
      cudaMemcpyAsync(memory_->data() + begin, staging.data, bytes, cudaMemcpyHostToDevice, stream),
      "sending the tensor table");
  check(cudaEventRecord(staging.copied, stream), "recording an event");
}

// Memory whose last copy is done, or new memory: never a wait.
Staging& DeviceTable::free_staging(size_t bytes) {
  for (const auto& staging : staging_) {
    if (staging->bytes >= bytes && cudaEventQuery(staging->copied) == cudaSuccess) {
      return *staging;
    }
  }
  (void)cudaGetLastError();  // "not ready" is an answer, not a fault
  staging_.push_back(std::make_unique<Staging>(bytes + bytes / 2));
  return *staging_.back();
}

DeviceTable& device_side(TensorTable& table) {
  if (table.device_side == nullptr) {
    table.device_side = std::make_unique<DeviceTable>();
  }
  return static_cast<DeviceTable&>(*table.device_side);
}

namespace {

struct Pool {
  std::mutex mutex;
  std::multimap<cudaStream_t, std::unique_ptr<DeviceTable>> idle;
  std::vector<std::unique_ptr<DeviceTable>> captured;
};

// Never destroyed: at exit the driver may be gone before it.
Pool& pool() {
  static Pool& pool = *new Pool;
  return pool;
}

}  // namespace

BorrowedDeviceTable::BorrowedDeviceTable(cudaStream_t stream) : stream_(stream) {
  Pool& shared = pool();
  const std::lock_guard lock(shared.mutex);
  const auto found = shared.idle.find(stream);
  if (found == shared.idle.end()) {
    table_ = std::make_unique<DeviceTable>();
  } else {
    table_ = std::move(found->second);
    shared.idle.erase(found);
    table_->forget();
  }
}

BorrowedDeviceTable::~BorrowedDeviceTable() {
  Pool& shared = pool();
  const std::lock_guard lock(shared.mutex);
  if (table_->captured()) {
    shared.captured.push_back(std::move(table_));
  } else {
    shared.idle.emplace(stream_, std::move(table_));
  }
}

}  // namespace fusedstep::cuda
