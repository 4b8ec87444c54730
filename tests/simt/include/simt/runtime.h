// The SIMT harness as kernels' intrinsics and tests see it: launches, barriers, collectives,
// errors.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// CUDA's built-in variables. One operating-system thread runs everything, so they are plain globals
// that the scheduler sets each time it resumes a thread of a kernel.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace simt {

using Where = std::source_location;

struct Options {
  std::uint64_t seed = 0;   // every scheduling choice follows from it
  int resident_blocks = 4;  // at most so many blocks are interleaved; the seed draws from 1 to this
  int multiprocessors = 2;  // what cudaDeviceGetAttribute answers
  std::int64_t max_switches = std::int64_t{1}
                              << 28;  // a launch that needs more is taken to be endless
};

// Sets the options of the launches to come and restarts the sequence of scheduling choices.
void configure(const Options& options);
const Options& options();

// A kernel did what CUDA leaves undefined. The text names function, file, line, block and thread.
class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs `kernel` once for every thread of the grid, to the end. Throws Error; the other threads are
// then abandoned.
void launch(dim3 grid, dim3 block, const std::function<void()>& kernel);

// What intrinsics call, from inside a kernel only.
void yield();
unsigned lane();

// While held, the current thread is not preempted: what intrinsics change must not be seen half
// done, and the harness shares instrumented functions of the standard library with the kernels.
// wait() and an Error need no release.
unsigned hold_preemption();
void release_preemption(unsigned held);

// Waits for all threads of the block; returns for how many of them `predicate` held.
unsigned block_barrier(const char* name, bool predicate, const Where& where);

// Waits for the lanes in `mask`, then returns the value that lane `source` brought.
std::uint64_t warp_shuffle(const char* name, unsigned mask, std::uint64_t value, unsigned source,
                           const Where& where);

// Waits for the lanes in `mask`, then returns the set of those for which `predicate` held.
unsigned warp_vote(const char* name, unsigned mask, bool predicate, const Where& where);

// __syncwarp: as a vote, and orders the lanes' accesses to shared memory, which shuffles and votes
// do not.
void warp_barrier(const char* name, unsigned mask, const Where& where);

}  // namespace simt
