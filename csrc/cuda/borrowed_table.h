// A device table for the length of one op, from a pool.
#pragma once

#include <memory>

#include "csrc/cuda/device_table.h"
#include "csrc/cuda/pool.h"

namespace fusedstep::cuda {

// Its memory goes back to the pool, to be overwritten in the order of the same stream of the same
// device; where a graph was captured it is kept for good.
class BorrowedDeviceTable {
 public:
  BorrowedDeviceTable(int32_t device, cudaStream_t stream);
  ~BorrowedDeviceTable();
  BorrowedDeviceTable(const BorrowedDeviceTable&) = delete;
  DeviceTable& operator*() const { return *table_; }

 private:
  StreamKey key_;
  std::unique_ptr<DeviceTable> table_;
};

}  // namespace fusedstep::cuda
