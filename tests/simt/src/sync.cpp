// Barriers, shuffles and votes: who must arrive, what is wrong if somebody else does, what each
// gets.
#include <algorithm>
#include <string_view>

#include "grid.h"

namespace simt {
namespace {

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name() &&
         std::string_view(a.function_name()) == b.function_name();
}

// Every lane learns what the others of the mask did before.
void order_lanes(Warp& warp, unsigned mask) {
  std::array<std::uint32_t, kWarp> joined{};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    for (unsigned i = 0; i < kWarp; ++i) joined[i] = std::max(joined[i], warp.clock[lane][i]);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    warp.clock[lane] = joined;
    ++warp.clock[lane][lane];
  }
}

// Refuses what CUDA leaves undefined; returns whether all lanes of the mask are there.
bool collective_complete(const Thread& self) {
  if ((self.mask >> self.lane() & 1u) == 0) {
    throw Error("a lane is missing in its own mask: " + describe(self) + " in " +
                describe_wait(self));
  }
  if ((self.mask >> self.source & 1u) == 0) {
    throw Error("a lane reads from lane " + std::to_string(self.source) +
                ", which its mask does not name: " + describe(self) + " in " + describe_wait(self));
  }
  bool complete = true;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const bool named = self.mask >> lane & 1u;
    const Thread* other = self.block->lane(self.warp(), lane);
    const bool gone = other == nullptr || other->state == Thread::State::finished;
    if (gone) {
      if (named) {
        throw Error("a mask names lane " + std::to_string(lane) + ", which " +
                    (other == nullptr ? "does not exist" : "has returned") + ": " + describe(self) +
                    " in " + describe_wait(self));
      }
      continue;
    }
    const bool waits = other->state == Thread::State::at_collective;
    const bool same =
        waits && other->mask == self.mask && std::string_view(other->name) == self.name;
    if (waits && !same && (named || (other->mask >> self.lane() & 1u))) {
      throw Error("lanes meet in different collectives: " + describe(self) + " in " +
                  describe_wait(self) + ", " + describe(*other) + " in " + describe_wait(*other));
    }
    complete &= !named || same;
  }
  return complete;
}

std::uint64_t collective(const char* name, unsigned mask, bool predicate, std::uint64_t value,
                         unsigned source, const Where& where, void (*complete)(Thread&)) {
  hold_preemption();
  Thread& self = *grid->current;
  self.name = name;
  self.where = where;
  self.mask = mask;
  self.predicate = predicate;
  self.value = value;
  self.source = source;
  self.state = Thread::State::at_collective;
  if (collective_complete(self)) complete(self);
  wait(self);
  return self.result;
}

template <typename F>
void for_each_lane(const Thread& self, F&& f) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (self.mask >> lane & 1u) f(*self.block->lane(self.warp(), lane));
  }
}

void complete_shuffle(Thread& self) {
  for_each_lane(
      self, [](Thread& lane) { lane.result = lane.block->lane(lane.warp(), lane.source)->value; });
  for_each_lane(self, [](Thread& lane) { lane.block->wake(lane); });
}

void complete_vote(Thread& self) {
  std::uint64_t votes = 0;
  for_each_lane(self, [&](Thread& lane) {
    votes |= static_cast<std::uint64_t>(lane.predicate) << lane.lane();
  });
  for_each_lane(self, [&](Thread& lane) {
    lane.result = votes;
    lane.block->wake(lane);
  });
}

void complete_barrier(Thread& self) {
  order_lanes(self.block->warps[self.warp()], self.mask);
  for_each_lane(self, [](Thread& lane) { lane.block->wake(lane); });
}

}  // namespace

std::uint64_t warp_shuffle(const char* name, unsigned mask, std::uint64_t value, unsigned source,
                           const Where& where) {
  return collective(name, mask, false, value, source, where, complete_shuffle);
}

unsigned warp_vote(const char* name, unsigned mask, bool predicate, const Where& where) {
  return static_cast<unsigned>(collective(name, mask, predicate, 0, lane(), where, complete_vote));
}

void warp_barrier(const char* name, unsigned mask, const Where& where) {
  collective(name, mask, false, 0, lane(), where, complete_barrier);
}

// Stricter than the hardware: all threads of the block must come to the same barrier.
unsigned block_barrier(const char* name, bool predicate, const Where& where) {
  hold_preemption();
  Thread& self = *grid->current;
  Block& block = *self.block;
  self.name = name;
  self.where = where;
  self.state = Thread::State::at_barrier;
  if (block.finished != nullptr) {
    throw Error("a thread waits for one that has returned: " + describe(self) + " in " +
                describe_wait(self) + ", " + describe(*block.finished) + " has returned");
  }
  if (block.first_at_barrier == nullptr) {
    block.first_at_barrier = &self;
  } else if (!same_place(block.first_at_barrier->where, where)) {
    throw Error("threads of a block wait at different barriers: " + describe(self) + " in " +
                describe_wait(self) + ", " + describe(*block.first_at_barrier) + " in " +
                describe_wait(*block.first_at_barrier));
  }
  block.holding += predicate;
  if (++block.num_at_barrier == block.threads.size()) {
    for (Thread& thread : block.threads) {
      thread.result = block.holding;
      block.wake(thread);
    }
    block.first_at_barrier = nullptr;
    block.num_at_barrier = block.holding = 0;
    ++block.epoch;
  }
  wait(self);
  return static_cast<unsigned>(self.result);
}

void leave_block(Thread& self) {
  Block& block = *self.block;
  const Thread* waiting = block.first_at_barrier;
  for (unsigned i = 0; i < kWarp && waiting == nullptr; ++i) {
    const Thread* other = block.lane(self.warp(), i);
    if (other != nullptr && other->state == Thread::State::at_collective &&
        (other->mask >> self.lane() & 1u)) {
      waiting = other;
    }
  }
  if (waiting != nullptr) {
    throw Error("a thread returns while another waits for it: " + describe(self) + " returned, " +
                describe(*waiting) + " in " + describe_wait(*waiting));
  }
  self.state = Thread::State::finished;
  block.finished = &self;
  ++block.num_finished;
}

}  // namespace simt
