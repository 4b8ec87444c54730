// The copy of a tensor table in GPU memory: sent once, re-sent only where it changed. Bringing it
// up to date waits for the GPU in the capture of a graph alone.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "csrc/cuda/memory.h"
#include "csrc/cuda/pool.h"
#include "csrc/device.h"

namespace fusedstep::cuda {

// The layout of the memory: groups and gradient addresses first, since they change most often,
// then rows and chunks, then what kernels write: partial sums, and counters that are zero at rest.
class DeviceTable : public DeviceCopy {
 public:
  // Brings the copy up to date with `table` and `groups`, in order on `stream`; without groups none
  // are read, and the old ones stay. If it raises, the next call sends everything again. Another
  // stream than the last one makes it begin anew, in memory of its own.
  void synchronize(const TableData& table, std::span<const std::byte> groups, cudaStream_t stream);

  const Table& view() const { return view_; }
  double* partials() const { return partials_; }
  unsigned* ticket() const { return counters_; }
  unsigned* finished() const { return counters_ + 1; }
  bool captured() const { return captured_; }
  void release();  // gives the memory back, in the order of the stream; no graph reads it

 private:
  void place(const TableData& table, size_t groups_bytes, cudaStream_t stream, bool capturing);
  void send(size_t bytes, cudaStream_t stream, bool capturing);
  Staging& free_staging(size_t bytes);

  std::unique_ptr<DeviceMemory> memory_;
  std::vector<std::unique_ptr<DeviceMemory>> retired_;  // graphs read it
  std::vector<std::unique_ptr<Staging>> staging_;
  std::vector<std::byte> sent_;  // what the memory holds, or will once the stream gets there
  bool captured_ = false;        // a graph reads memory_
  size_t groups_bytes_ = 0;
  int64_t layout_version_ = -1;
  Table view_ = {};
  double* partials_ = nullptr;
  unsigned* counters_ = nullptr;
};

// A device table for the length of one op. Its memory goes back to torch and its page-locked memory
// to a pool, for ops on the same stream of the same device; where a graph was captured both are
// kept for good.
class BorrowedTable {
 public:
  BorrowedTable(int32_t device, cudaStream_t stream);
  ~BorrowedTable();
  BorrowedTable(const BorrowedTable&) = delete;
  DeviceTable& operator*() const { return *table_; }
  DeviceTable* operator->() const { return table_.get(); }

 private:
  StreamKey key_;
  std::unique_ptr<DeviceTable> table_;
};

}  // namespace fusedstep::cuda
