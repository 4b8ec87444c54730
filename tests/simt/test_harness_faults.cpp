// The harness itself: each planted fault is caught, under every seed, by an error that says where
// it is.
#include <set>
#include <vector>

#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace {

constexpr int kSeeds = 10;
constexpr unsigned kAll = 0xffffffffu;

template <typename... Parameters, typename... Arguments>
void must_fail(const char* text, void (*kernel)(Parameters...), dim3 grid, dim3 block,
               Arguments... arguments) {
  simt::for_seeds(kSeeds, [&](int) {
    CHECK_THROWS(simt::Error, text, simt::run(kernel, grid, block, arguments...));
  });
}

// ---- shared memory ----

__global__ void reverse(int* out, bool with_barrier) {
  FUSEDSTEP_SHARED(int, values, 64);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void write_same_place(int* out) {
  FUSEDSTEP_SHARED(int, value, 1);
  value[0] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = value[0];
}

// All have read before it is written, but within a warp only __syncwarp makes that an order.
__global__ void write_after_reads(int* out, bool syncwarp, unsigned writer) {
  FUSEDSTEP_SHARED(int, value, 1);
  if (threadIdx.x == 0) value[0] = 1;
  __syncthreads();
  out[threadIdx.x] = value[0];
  syncwarp ? __syncwarp() : static_cast<void>(__any_sync(kAll, 1));
  if (threadIdx.x == writer) value[0] = 2;
}

// Lanes 0 to 15 are ordered by a partial mask, lane 16 is not.
__global__ void partial_order(int* out, unsigned reader) {
  FUSEDSTEP_SHARED(int, value, 1);
  if (threadIdx.x == 0) value[0] = 1;
  if (threadIdx.x < 16) __syncwarp(0x0000ffffu);
  if (threadIdx.x == reader) *out = value[0];
}

__global__ void touch(unsigned size, long long index, bool write) {
  FUSEDSTEP_SHARED(float, values, 100);
  if (threadIdx.x >= size) return;
  if (write) {
    values[index] = 1;
  } else {
    const float value = values[index];
    static_cast<void>(value);
  }
}

__global__ void declare_too_much() {
  FUSEDSTEP_SHARED(double, values, 6145);
  values[0] = 1;
}

void test_shared_memory() {
  std::vector<int> out(64);
  simt::for_seeds(kSeeds, [&](int) {
    simt::run(reverse, 2, 64, out.data(), true);
    CHECK(out[0] == 63 && out[63] == 0);
  });
  // Without the barrier some thread reads what is not there yet, or at the same time as it is
  // written.
  must_fail("index", reverse, 2, 64, out.data(), false);
  must_fail("write of shared memory races with a write by block (0, 0, 0) thread", write_same_place,
            1, 2, out.data());

  simt::for_seeds(kSeeds, [&](int) {
    simt::run(write_after_reads, 1, 32, out.data(), true, 7u);
    CHECK(out[31] == 1);
  });
  must_fail("write of shared memory races with a read", write_after_reads, 1, 32, out.data(), false,
            7u);
  must_fail("races with", write_after_reads, 1, 64, out.data(), true, 7u);

  // In most orders the value is there when it is read; where it is not, the error is another.
  simt::for_seeds(kSeeds, [&](int) {
    out[0] = 0;
    simt::run(partial_order, 1, 32, out.data(), 15u);
    CHECK(out[0] == 1);
  });
  must_fail("of shared memory", partial_order, 1, 32, out.data(), 16u);

  must_fail("write of shared memory out of bounds: index 100 of an array of 100", touch, 1, 32, 1u,
            100ll, true);
  must_fail("write of shared memory out of bounds: index -1 ", touch, 1, 32, 1u, -1ll, true);
  must_fail("read of shared memory out of bounds: index 4294967296 ", touch, 1, 32, 1u, 1ll << 32,
            false);
  must_fail("read of shared memory before anything was written there: index 99 ", touch, 3, 32, 1u,
            99ll, false);
  must_fail("touch", touch, 1, 32, 1u, 99ll, false);
  must_fail("test_harness_faults.cpp:", touch, 1, 32, 1u, 99ll, false);
  must_fail("49160 bytes", declare_too_much, 1, 1);
}

// ---- barriers and collectives ----

__global__ void divergent_barrier(int kind) {
  if (kind == 0) {  // half of the threads return
    if (threadIdx.x >= 32) return;
    __syncthreads();
  } else if (kind == 1) {  // two barriers
    if (threadIdx.x % 2) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (kind == 2) {  // a barrier here, a collective that wants the same lanes there
    if (threadIdx.x == 3) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
}

__global__ void divergent_lanes(int kind) {
  const unsigned t = threadIdx.x;
  if (kind == 0 && t != 9) __shfl_down_sync(kAll, t, 1);              // lane 9 never arrives
  if (kind == 1) __shfl_down_sync(0xfffffffeu, t, 1);                 // lane 0 is not named
  if (kind == 2) __shfl_sync(t < 16 ? 0xffffu : 0xffff0000u, t, 20);  // reads across the masks
  if (kind == 3) t == 4 ? __any_sync(kAll, 1) : __all_sync(kAll, 1);
  if (kind == 4) __ballot_sync(t < 20 ? 0x00ffffffu : kAll, 1);
}

__global__ void wait_for_ever(const unsigned* flag) {
  while (__ldcg(flag) == 0) __threadfence();
}

void test_barriers() {
  must_fail("returned", divergent_barrier, 1, 64, 0);
  must_fail("threads of a block wait at different barriers", divergent_barrier, 1, 64, 1);
  must_fail("deadlock: block (0, 0, 0) thread (0, 0, 0) waits in __syncwarp of lanes 0xffffffff",
            divergent_barrier, 1, 32, 2);
  must_fail("divergent_lanes", divergent_lanes, 1, 32, 0);
  must_fail("missing in its own mask", divergent_lanes, 1, 32, 1);
  must_fail("reads from lane 20, which its mask does not name", divergent_lanes, 1, 32, 2);
  must_fail("waits in __any_sync of lanes 0xffffffff", divergent_lanes, 1, 32, 3);
  must_fail("deadlock", divergent_lanes, 1, 32, 4);
  must_fail("a mask names lane 20, which has returned or does not exist", divergent_lanes, 1, 20,
            3);
  simt::configure({.max_switches = 10000});
  const unsigned flag = 0;
  CHECK_THROWS(simt::Error, "does not end", simt::run(wait_for_ever, 1, 1, &flag));
}

// ---- global memory ----

#if defined(__SANITIZE_ADDRESS__)
__global__ void fill(float* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += 32) out[i] = 1;
}

struct alignas(16) Float4 {
  float values[4];
};

__global__ void fill_packs(float* out) {
  reinterpret_cast<Float4*>(out)[threadIdx.x] = Float4{1, 2, 3, 4};
}

void test_sanitizers() {
  std::vector<float> out(100);
  simt::run(fill, 1, 32, out.data(), 100);
  CHECK(out[99] == 1);
  CHECK_DIES("heap-buffer-overflow", simt::run(fill, 1, 32, out.data(), 101));
  CHECK_DIES("misaligned address", simt::run(fill_packs, 1, 2, out.data() + 1));
}
#else
void test_sanitizers() {
  std::puts("global accesses out of bounds or misaligned: skipped, built without sanitizers");
}
#endif

// Blocks add up their numbers, and the last one publishes the sum. Counted without an atomic, two
// blocks can draw the same ticket, fence or not, and then none is the last.
__global__ void publish_sum(unsigned* parts, unsigned* tickets, unsigned* out, bool atomic) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = blockIdx.x;
  __threadfence();
  unsigned ticket = 0;
  if (atomic) {
    ticket = atomicAdd(tickets, 1u);
  } else {
    ticket = *tickets;
    __threadfence();
    *tickets = ticket + 1;
  }
  if (ticket == gridDim.x - 1) {
    for (unsigned b = 0; b < gridDim.x; ++b) *out += parts[b];
  }
}

void test_race_between_blocks() {
  for (const bool atomic : {true, false}) {
    std::set<unsigned> results;
    simt::for_seeds(100, [&](int) {
      std::vector<unsigned> parts(16), tickets(1), out(1);
      simt::run(publish_sum, 16, 32, parts.data(), tickets.data(), out.data(), atomic);
      results.insert(out[0]);
    });
    CHECK(results.count(120) == 1);
    CHECK(atomic ? results.size() == 1 : results.size() > 1);
  }
}

}  // namespace

int main() {
  test_shared_memory();
  test_barriers();
  test_sanitizers();
  test_race_between_blocks();
  return check::summary();
}
