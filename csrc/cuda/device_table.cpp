// The copy of a tensor table in GPU memory, and the pool of copies that one op uses.
#include "csrc/cuda/device_table.h"

#include <algorithm>
#include <cstring>

#include "kernels/common/write_words.cuh"

namespace fusedstep::cuda {
namespace {

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

  const bool laid_out = layout_version_ == table.version && groups_bytes_ == groups.size() &&
                        memory_->stream() == stream;
  const bool current = laid_out && std::memcmp(sent_.data(), often.data(), often.size()) == 0;
  if (!current) {
    // A captured graph goes on reading its table at every replay: leave it and begin another.
    // During capture even one that no graph reads is left: the new one does not go through the
    // stream, so it would not wait for the kernels in flight.
    const bool keep = laid_out && !captured_ && !capturing;
    layout_version_ = -1;  // if anything fails from here on, the next call starts over
    if (!keep) {
      place(table, groups.size(), stream, capturing);
    }
    std::memcpy(sent_.data(), often.data(), often.size());
    send(keep ? often.size() : sent_.size(), stream, capturing);
    layout_version_ = table.version;
  }
  captured_ = captured_ || capturing;
  view_.num_chunks = table.layout.num_chunks();
}

void DeviceTable::place(const TableData& table, size_t groups_bytes, cudaStream_t stream,
                        bool capturing) {
  const Layout& layout = table.layout;
  const size_t grads_at = aligned(groups_bytes);
  const size_t rows_at = aligned(grads_at + bytes_of(table.grads));
  const size_t chunks_at = aligned(rows_at + bytes_of(layout.rows));
  const size_t partials_at = aligned(chunks_at + bytes_of(layout.row_of_chunk));
  const size_t counters_at = partials_at + layout.num_chunks() * sizeof(double);
  const size_t total = aligned(counters_at + (1 + layout.rows.size()) * sizeof(unsigned));

  auto memory = std::make_unique<DeviceMemory>(total, stream, capturing);
  if (captured_) {
    retired_.push_back(std::move(memory_));
  }
  memory_ = std::move(memory);
  captured_ = false;
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

void DeviceTable::send(size_t bytes, cudaStream_t stream, bool capturing) {
  constexpr const char* kWhat = "sending the tensor table";
  if (capturing) {
    // Now and outside the graph: a copy inside it would read host memory at every replay.
    RelaxedCapture relaxed;
    SideStream aside;
    check(cudaMemcpyAsync(memory_->data(), sent_.data(), bytes, cudaMemcpyHostToDevice, aside),
          kWhat);
    check(cudaStreamSynchronize(aside), kWhat);
  } else if (bytes <= kMostWrittenBytes) {
    check(write_words(sent_.data(), bytes, memory_->data(), stream), kWhat);
  } else {
    Staging& staging = free_staging(bytes);
    std::memcpy(staging.data(), sent_.data(), bytes);
    staging.copy_to(memory_->data(), bytes, stream);
  }
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

void DeviceTable::release() {
  layout_version_ = -1;
  memory_.reset();
}

BorrowedTable::BorrowedTable(int32_t device, cudaStream_t stream)
    : key_(device, stream), table_(pool().take(key_)) {
  if (table_ == nullptr) {
    table_ = std::make_unique<DeviceTable>();
  }
}

BorrowedTable::~BorrowedTable() {
  if (table_->captured()) {
    (void)table_.release();  // the graph reads it for as long as it lives
  } else {
    table_->release();
    pool().give_back(key_, std::move(table_));
  }
}

}  // namespace fusedstep::cuda
