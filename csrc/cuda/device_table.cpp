// The copy of a tensor table in GPU memory, and the pool of copies that one op uses.
#include "csrc/cuda/device_table.h"

#include <algorithm>
#include <cstring>

namespace fusedstep::cuda {
namespace {

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

Pool<DeviceTable>& pool() {
  static Pool<DeviceTable>& pool = *new Pool<DeviceTable>;
  return pool;
}

}  // namespace

void DeviceTable::synchronize(const TableData& table, std::span<const std::byte> groups,
                              cudaStream_t stream) {
  const bool capturing = is_capturing(stream);
  const size_t grads_bytes = bytes_of(table.grads);
  if (groups.empty() && layout_version_ == table.version) {
    groups = {sent_.data(), groups_bytes_};  // a norm needs none: those of the last step stay
  }

  std::vector<std::byte> often(aligned(groups.size()) + grads_bytes);
  std::ranges::copy(groups, often.data());
  std::memcpy(often.data() + aligned(groups.size()), table.grads.data(), grads_bytes);

  const bool laid_out = layout_version_ == table.version && groups_bytes_ == groups.size();
  const bool current = laid_out && std::memcmp(sent_.data(), often.data(), often.size()) == 0;
  if (!current) {
    // A captured graph goes on reading its table at every replay: leave it and begin another.
    // During capture even a copy that no graph reads stays: the new one does not go through the
    // stream, so it would not wait for the kernels in flight.
    const bool keep = laid_out && !captured_ && !capturing;
    forget();  // if anything fails from here on, the next call starts over
    if (!keep) {
      place(table, groups.size(), capturing);
    }
    std::memcpy(sent_.data(), often.data(), often.size());
    send(0, keep ? often.size() : sent_.size(), stream, capturing);
    layout_version_ = table.version;
  }
  captured_ = captured_ || capturing;
  view_.num_chunks = table.layout.num_chunks();
}

void DeviceTable::place(const TableData& table, size_t groups_bytes, bool capturing) {
  const Layout& layout = table.layout;
  const size_t grads_at = aligned(groups_bytes);
  const size_t rows_at = aligned(grads_at + bytes_of(table.grads));
  const size_t chunks_at = aligned(rows_at + bytes_of(layout.rows));
  const size_t partials_at = aligned(chunks_at + bytes_of(layout.row_of_chunk));
  const size_t counters_at = partials_at + layout.num_chunks() * sizeof(double);
  const size_t total = counters_at + (1 + layout.rows.size()) * sizeof(unsigned);

  const bool retire = captured_ || capturing;
  if (memory_ == nullptr || retire || memory_->bytes() < total) {
    auto memory = std::make_unique<DeviceMemory>(capturing ? total : total + total / 2);
    if (retire && memory_ != nullptr) {
      retired_.push_back(std::move(memory_));
    }
    memory_ = std::move(memory);
    captured_ = false;
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
}

void DeviceTable::send(size_t begin, size_t end, cudaStream_t stream, bool capturing) {
  const size_t bytes = end - begin;
  if (capturing) {
    // Now and outside the graph: a copy inside it would read host memory at every replay.
    RelaxedCapture relaxed;
    SideStream aside;
    check(cudaMemcpyAsync(memory_->data() + begin, sent_.data() + begin, bytes,
                          cudaMemcpyHostToDevice, aside),
          "sending the tensor table");
    check(cudaStreamSynchronize(aside), "sending the tensor table");
    return;
  }
  Staging& staging = free_staging(bytes);
  std::memcpy(staging.data(), sent_.data() + begin, bytes);
  staging.copy_to(memory_->data() + begin, bytes, stream);
}

// Memory whose last copy is done, or new memory: never a wait.
Staging& DeviceTable::free_staging(size_t bytes) {
  for (const auto& staging : staging_) {
    if (staging->bytes() >= bytes && staging->idle()) {
      return *staging;
    }
  }
  staging_.push_back(std::make_unique<Staging>(bytes + bytes / 2));
  return *staging_.back();
}

BorrowedTable::BorrowedTable(int32_t device, cudaStream_t stream)
    : key_(device, stream), table_(pool().take(key_)) {
  if (table_ == nullptr) {
    table_ = std::make_unique<DeviceTable>();
  } else {
    table_->forget();
  }
}

BorrowedTable::~BorrowedTable() {
  if (table_->captured()) {
    (void)table_.release();  // the graph reads it for as long as it lives
  } else {
    pool().give_back(key_, std::move(table_));
  }
}

}  // namespace fusedstep::cuda
