// What ops borrow for their own length and leave to the ops that follow on the same stream.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace fusedstep::cuda {

// By device too: every device's default stream is the null pointer.
using StreamKey = std::pair<int32_t, cudaStream_t>;

// Threads may share it; each takes a value of its own. To be allocated and never destroyed: at exit
// the driver may be gone before it.
template <typename T>
class Pool {
 public:
  // One that was given back for this stream, else null.
  std::unique_ptr<T> take(const StreamKey& key) {
    const std::lock_guard lock(mutex_);
    const auto found = idle_.find(key);
    if (found == idle_.end()) {
      return nullptr;
    }
    auto value = std::move(found->second);
    idle_.erase(found);
    return value;
  }

  void give_back(const StreamKey& key, std::unique_ptr<T> value) {
    const std::lock_guard lock(mutex_);
    idle_.emplace(key, std::move(value));
  }

 private:
  std::mutex mutex_;
  std::multimap<StreamKey, std::unique_ptr<T>> idle_;
};

}  // namespace fusedstep::cuda
