// The pool of device tables for ops whose tensor table does not live on.
#include "csrc/cuda/borrowed_table.h"

#include <map>
#include <mutex>
#include <vector>

namespace fusedstep::cuda {
namespace {

struct Pool {
  std::mutex mutex;
  std::multimap<BorrowedDeviceTable::Key, std::unique_ptr<DeviceTable>> idle;
  std::vector<std::unique_ptr<DeviceTable>> captured;
};

// Never destroyed: at exit the driver may be gone before it.
Pool& pool() {
  static Pool& pool = *new Pool;
  return pool;
}

}  // namespace

BorrowedDeviceTable::BorrowedDeviceTable(int32_t device, cudaStream_t stream)
    : key_(device, stream) {
  Pool& shared = pool();
  const std::lock_guard lock(shared.mutex);
  const auto found = shared.idle.find(key_);
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
    shared.idle.emplace(key_, std::move(table_));
  }
}

}  // namespace fusedstep::cuda
