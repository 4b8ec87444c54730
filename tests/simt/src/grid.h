// The state of a running launch: its resident blocks, their threads, and who waits for what.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt/runtime.h"
#include "simt/shared.h"

namespace simt {

constexpr unsigned kWarp = 32;

struct Block;

struct Thread {
  enum class State : std::uint8_t { runnable, at_barrier, at_collective, finished };

  Thread(Block* block, uint3 index, unsigned number);

  Block* block;
  uint3 index;
  unsigned number;  // within the block, in CUDA's order
  State state = State::runnable;
  // Where it waits and with what. `source` is the lane a shuffle reads.
  const char* name = nullptr;
  Where where;
  bool predicate = false;
  unsigned mask = 0;
  unsigned source = 0;
  std::uint64_t value = 0;
  // What the barrier or collective gave it.
  std::uint64_t result = 0;
  std::unique_ptr<Fiber> fiber;

  unsigned lane() const { return number % kWarp; }
  unsigned warp() const { return number / kWarp; }
};

struct Warp {
  // Lanes that wait in one collective until all that its mask names have come.
  struct Meeting {
    const char* name;
    unsigned mask;
    unsigned arrived;
  };
  std::vector<Meeting> meetings;
  Thread* lanes = nullptr;  // of the block's threads
  unsigned gone = 0;        // lanes that have returned or do not exist
  // clock[a][b]: up to which of lane b's intervals between __syncwarps lane a has seen everything.
  std::array<std::array<std::uint32_t, kWarp>, kWarp> clock{};
};

struct Block {
  Block(uint3 index, dim3 size);

  uint3 index;
  std::uint32_t epoch = 1;  // the number of the interval between barriers
  Thread* first_at_barrier = nullptr;
  unsigned num_at_barrier = 0;
  unsigned holding = 0;        // of those, how many brought a true predicate
  Thread* finished = nullptr;  // one that has returned
  unsigned num_finished = 0;
  std::vector<Thread> threads;
  std::vector<Thread*> runnable;
  std::vector<Warp> warps;
  std::vector<std::shared_ptr<SharedArray>> arrays;

  void wake(Thread& thread);
};

// The one launch that runs at a time.
struct Grid {
  dim3 block_size;
  const std::function<void()>* kernel;
  Thread* current = nullptr;
  std::vector<std::unique_ptr<Block>> resident = {};
  Block* last = nullptr;  // the block that ran last, and how often it is to be preferred still
  unsigned stay = 0;
  unsigned loyalty = 1;   // bounds `stay`
  unsigned patience = 1;  // bounds how many basic blocks of code run before a preemption
  std::string error = {};

  Block* pick_block();
  void run(dim3 grid);
};

extern Grid* grid;  // null outside a launch

// splitmix64 (https://prng.di.unimi.it/splitmix64.c): a number is drawn at every switch.
struct Generator {
  using result_type = std::uint64_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~result_type{0}; }
  result_type state = 0;
  result_type operator()() {
    result_type z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};
extern Generator generator;

// From 0 to bound - 1.
inline unsigned draw(std::size_t bound) {
  return static_cast<unsigned>((generator() >> 32) * bound >> 32);
}

// Gives up the processor after setting Thread::state.
void wait(Thread& thread);

// A thread has returned from the kernel: an error if another waits for it.
void leave_block(Thread& thread);

std::string describe(uint3 index);
std::string describe(const Thread& thread);       // "block (0, 0, 0) thread (3, 0, 0)"
std::string describe(const Where& where);         // "void kernel(float*) at norm.cu:12"
std::string describe_wait(const Thread& thread);  // what it waits in, and where
std::string describe_deadlock(const Grid& grid);  // who waits where

}  // namespace simt
