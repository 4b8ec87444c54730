// Block-shared arrays: where they are, and the shadow state that finds reads of nothing and races.
//
// Two accesses by different threads are in order if a barrier of the block lies between them, or,
// within a warp, a chain of __syncwarps: the lanes' clocks tell. Shuffles, votes and fences order
// nothing: CUDA does not promise that they do. Two accesses that are not in order, one of them a
// write, are a race, in whatever order this run happened to do them.
#include <cstring>
#include <string_view>

#include "grid.h"

namespace simt {

namespace {

constexpr std::size_t kStaticLimit = 48 * 1024;  // bytes of shared memory that a block may declare
constexpr std::uint16_t kSeveral = 0xffff;

// What happened to one element. An access counts as past if its epoch is not the block's.
struct Shadow {
  std::uint32_t write_epoch = 0;
  std::uint32_t write_clock = 0;
  std::uint16_t writer = 0;
  bool initialised = false;
  std::uint16_t read_warp = 0;  // kSeveral: read by more than one warp
  std::uint32_t read_epoch = 0;
  std::uint32_t readers = 0;                    // lanes of read_warp
  std::array<std::uint32_t, kWarp> read_clock;  // by lane, valid for `readers`
};

}  // namespace

class SharedArray {
 public:
  SharedArray(int id, std::int64_t count, std::size_t element_size, const char* type,
              const Where& where)
      : id_(id),
        count_(count),
        element_size_(element_size),
        type_(type),
        where_(where),
        data_(bytes()),
        shadow_(count) {}

  std::size_t bytes() const { return static_cast<std::size_t>(count_) * element_size_; }

  // Whether it is the array of this declaration. A template's instances each declare their own.
  bool declared_as(int id, const char* type, const Where& where) const {
    return id_ == id && type_ == type && where_.line() == where.line() &&
           where_.column() == where.column() &&
           std::string_view(where_.function_name()) == where.function_name();
  }

  void* element(Thread& thread, std::int64_t index, Access access) {
    if (index < 0 || index >= count_) {
      report("out of bounds", thread, index, access, "");
    }
    Shadow& shadow = shadow_[static_cast<std::size_t>(index)];
    const Block& block = *thread.block;
    if (access == Access::read && !shadow.initialised) {
      report("before anything was written there", thread, index, access, "");
    }
    if (shadow.initialised && shadow.write_epoch == block.epoch &&
        !sees(thread, shadow.writer, shadow.write_clock)) {
      report("races", thread, index, access,
             " with a write by " + describe(block.threads[shadow.writer]));
    }
    access == Access::read ? note_read(thread, shadow) : note_write(thread, index, shadow);
    return data_.data() + static_cast<std::size_t>(index) * element_size_;
  }

 private:
  // Whether the other thread's access in its interval `clock` of this epoch comes before what
  // `thread` does now.
  static bool sees(const Thread& thread, unsigned other, std::uint32_t clock) {
    if (other == thread.number) return true;
    return other / kWarp == thread.warp() &&
           thread.block->warps[thread.warp()].clock[thread.lane()][other % kWarp] >= clock;
  }

  static std::uint32_t own_clock(const Thread& thread) {
    return thread.block->warps[thread.warp()].clock[thread.lane()][thread.lane()];
  }

  static void note_read(const Thread& thread, Shadow& shadow) {
    if (shadow.read_epoch != thread.block->epoch) {
      shadow.read_epoch = thread.block->epoch;
      shadow.readers = 0;
    }
    const auto warp = static_cast<std::uint16_t>(thread.warp());
    shadow.read_warp = shadow.readers == 0 || shadow.read_warp == warp ? warp : kSeveral;
    shadow.readers |= 1u << thread.lane();
    shadow.read_clock[thread.lane()] = own_clock(thread);
  }

  void note_write(Thread& thread, std::int64_t index, Shadow& shadow) {
    if (shadow.read_epoch == thread.block->epoch && shadow.readers != 0) {
      if (shadow.read_warp == kSeveral) {
        report("races", thread, index, Access::write, " with reads by several warps");
      }
      for (unsigned lane = 0; lane < kWarp; ++lane) {
        const unsigned reader = shadow.read_warp * kWarp + lane;
        if ((shadow.readers >> lane & 1u) && !sees(thread, reader, shadow.read_clock[lane])) {
          report("races", thread, index, Access::write,
                 " with a read by " + describe(thread.block->threads[reader]));
        }
      }
    }
    shadow.readers = 0;  // all of them come before this write
    shadow.initialised = true;
    shadow.write_epoch = thread.block->epoch;
    shadow.writer = static_cast<std::uint16_t>(thread.number);
    shadow.write_clock = own_clock(thread);
  }

  [[noreturn]] void report(const char* problem, const Thread& thread, std::int64_t index,
                           Access access, const std::string& with) const {
    throw Error(std::string(access == Access::read ? "read" : "write") + " of shared memory " +
                problem + with + ": index " + std::to_string(index) + " of an array of " +
                std::to_string(count_) + " declared in " + describe(where_) + ", by " +
                describe(thread));
  }

  int id_;
  std::int64_t count_;
  std::size_t element_size_;
  const char* type_;
  Where where_;
  std::vector<std::byte> data_;
  std::vector<Shadow> shadow_;
};

SharedArray* shared_array(int id, std::int64_t count, std::size_t element_size, const char* type,
                          const Where& where) {
  const unsigned held = hold_preemption();
  Block& block = *grid->current->block;
  std::size_t bytes = static_cast<std::size_t>(count) * element_size;
  for (const auto& array : block.arrays) {
    if (array->declared_as(id, type, where)) {
      release_preemption(held);
      return array.get();
    }
    bytes += array->bytes();
  }
  if (bytes > kStaticLimit) {
    throw Error("a block declares " + std::to_string(bytes) +
                " bytes of shared memory, more than " + std::to_string(kStaticLimit) + ": " +
                describe(where));
  }
  block.arrays.push_back(std::make_shared<SharedArray>(id, count, element_size, type, where));
  release_preemption(held);
  return block.arrays.back().get();
}

void* shared_element(SharedArray* array, std::int64_t index, Access access) {
  const unsigned held = hold_preemption();
  void* element = array->element(*grid->current, index, access);
  release_preemption(held);
  return element;
}

}  // namespace simt
