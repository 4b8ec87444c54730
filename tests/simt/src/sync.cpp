// Barriers, shuffles and votes: who must arrive, what is wrong if somebody else does, what each
// gets.
#include <algorithm>
#include <bit>
#include <cstring>

#include "grid.h"

namespace simt {
namespace {

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         same_text(a.file_name(), b.file_name()) && same_text(a.function_name(), b.function_name());
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

// Refuses what CUDA leaves undefined and nothing later could put right.
void check_mask(const Thread& self) {
  const auto refuse = [&](const std::string& what) {
    throw Error(what + ": " + describe(self) + " in " + describe_wait(self));
  };
  const unsigned gone = self.block->warps[self.warp()].gone & self.mask;
  if ((self.mask >> self.lane() & 1u) == 0) refuse("a lane is missing in its own mask");
  if ((self.mask >> self.source & 1u) == 0) {
    refuse("a lane reads from lane " + std::to_string(self.source) +
           ", which its mask does not name");
  }
  if (gone != 0) {
    refuse("a mask names lane " + std::to_string(std::countr_zero(gone)) +
           ", which has returned or does not exist");
  }
}

// Whether all lanes of the mask are there, now that `self` is. Lanes that meet in vain, since masks
// or collectives differ, show up in the end as a deadlock or as a thread that returns.
bool join_meeting(const Thread& self) {
  auto& meetings = self.block->warps[self.warp()].meetings;
  auto meeting = std::find_if(meetings.begin(), meetings.end(), [&](const Warp::Meeting& other) {
    return other.mask == self.mask && same_text(other.name, self.name);
  });
  if (meeting == meetings.end()) {
    meeting = meetings.insert(meeting, {self.name, self.mask, 0});
  }
  meeting->arrived |= 1u << self.lane();
  const bool complete = meeting->arrived == meeting->mask;
  if (complete) meetings.erase(meeting);
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
  check_mask(self);
  if (join_meeting(self)) complete(self);
  wait(self);
  return self.result;
}

template <typename F>
void for_each_lane(const Thread& self, F&& f) {
  Thread* lanes = self.block->warps[self.warp()].lanes;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (self.mask >> lane & 1u) f(lanes[lane]);
  }
}

void complete_shuffle(Thread& self) {
  const Thread* lanes = self.block->warps[self.warp()].lanes;
  for_each_lane(self, [&](Thread& lane) {
    lane.result = lanes[lane.source].value;
    lane.block->wake(lane);
  });
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
  Warp& warp = block.warps[self.warp()];
  const Thread* waiting = block.first_at_barrier;
  for (const Warp::Meeting& meeting : warp.meetings) {
    if (meeting.mask >> self.lane() & 1u) waiting = &warp.lanes[std::countr_zero(meeting.arrived)];
  }
  if (waiting != nullptr) {
    throw Error("a thread returns while another waits for it: " + describe(self) + " returned, " +
                describe(*waiting) + " in " + describe_wait(*waiting));
  }
  self.state = Thread::State::finished;
  warp.gone |= 1u << self.lane();
  block.finished = &self;
  ++block.num_finished;
}

}  // namespace simt
