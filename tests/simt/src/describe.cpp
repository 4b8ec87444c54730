// Puts places, threads and waits into words, for the errors.
#include <string_view>

#include "grid.h"

namespace simt {

std::string describe(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string describe(const Thread& thread) {
  return "block " + describe(thread.block->index) + " thread " + describe(thread.index);
}

std::string describe(const Where& where) {
  std::string_view file = where.file_name();
  file.remove_prefix(file.rfind('/') + 1);
  return std::string(where.function_name()) + " at " + std::string(file) + ":" +
         std::to_string(where.line());
}

std::string describe_wait(const Thread& thread) {
  std::string text = thread.name;
  if (thread.state == Thread::State::at_collective) {
    char mask[16];
    std::snprintf(mask, sizeof(mask), "0x%08x", thread.mask);
    text += std::string(" of lanes ") + mask;
  }
  return text + ", " + describe(thread.where);
}

std::string describe_deadlock(const Grid& grid) {
  std::string text = "deadlock:";
  int listed = 0;
  for (const auto& block : grid.resident) {
    for (const Thread& thread : block->threads) {
      if (thread.state == Thread::State::finished) continue;
      if (listed++ == 8) return text + " and others";
      text += (listed > 1 ? ", " : " ") + describe(thread) + " waits in " + describe_wait(thread);
    }
  }
  return text;
}

}  // namespace simt
