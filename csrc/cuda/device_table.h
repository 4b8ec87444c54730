// The copy of a tensor table in GPU memory: sent once, re-sent only where it changed, never waiting
// for the GPU.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "csrc/tensor_table.h"

namespace fusedstep::cuda {

void check(cudaError_t status, const char* what);

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
struct Staging {
  std::byte* data = nullptr;
  size_t bytes = 0;
  cudaEvent_t copied = nullptr;
  explicit Staging(size_t bytes);
  ~Staging();
  Staging(const Staging&) = delete;
};

// The layout of the memory: groups and gradient addresses first, since they change most often,
// then rows and chunks, then what kernels write: partial sums and counters, all zero at rest.
class DeviceTable : public DeviceSide {
 public:
  // Makes the copy say what `table` and `groups` say, in order on `stream`.
  void synchronize(const TensorTable& table, const void* groups, size_t groups_bytes,
                   cudaStream_t stream);

  const Table& view() const { return view_; }
  double* partials() const { return partials_; }
  unsigned* ticket() const { return counters_; }
  unsigned* finished() const { return counters_ + 1; }
  int64_t uploads() const { return uploads_; }
  bool captured() const { return captured_; }
  void forget() { layout_version_ = -1; }  // the next table is another one

 private:
  void place(const TensorTable& table, size_t groups_bytes, bool capturing);
  void send(size_t begin, size_t end, cudaStream_t stream, bool capturing);
  Staging& free_staging(size_t bytes);

  std::unique_ptr<DeviceMemory> memory_;
  std::vector<std::unique_ptr<DeviceMemory>> captured_memory_;  // graphs still point to it
  std::vector<std::unique_ptr<Staging>> staging_;
  std::vector<std::byte> sent_;  // what the memory holds, or will once the stream gets there
  bool captured_ = false;
  size_t groups_bytes_ = 0;
  int64_t layout_version_ = -1;
  int64_t uploads_ = 0;
  Table view_ = {};
  double* partials_ = nullptr;
  unsigned* counters_ = nullptr;
};

// The device side of a table that lives on, made at the first call.
DeviceTable& device_side(TensorTable& table);

// A device side for the length of one op. Its memory goes back to a pool, to be overwritten in
// the order of the same stream; where a graph was captured it is kept for good.
class BorrowedDeviceTable {
 public:
  explicit BorrowedDeviceTable(cudaStream_t stream);
  ~BorrowedDeviceTable();
  BorrowedDeviceTable(const BorrowedDeviceTable&) = delete;
  DeviceTable& operator*() const { return *table_; }

 private:
  cudaStream_t stream_;
  std::unique_ptr<DeviceTable> table_;
};

}  // namespace fusedstep::cuda
