// The pool of device tables for ops whose tensor table does not live on.
#include "csrc/cuda/borrowed_table.h"

namespace fusedstep::cuda {
namespace {

Pool<DeviceTable>& pool() {
  static Pool<DeviceTable>& pool = *new Pool<DeviceTable>;
  return pool;
}

}  // namespace

BorrowedDeviceTable::BorrowedDeviceTable(int32_t device, cudaStream_t stream)
    : key_(device, stream), table_(pool().take(key_)) {
  if (table_ == nullptr) {
    table_ = std::make_unique<DeviceTable>();
  } else {
    table_->forget();
  }
}

BorrowedDeviceTable::~BorrowedDeviceTable() {
  if (table_->captured()) {
    (void)table_.release();  // the graph reads it for as long as it lives
  } else {
    pool().give_back(key_, std::move(table_));
  }
}

}  // namespace fusedstep::cuda
