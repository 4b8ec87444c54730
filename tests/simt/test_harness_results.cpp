// The harness itself: correct kernels give the right answer in every order that the seeds draw.
#include <numeric>
#include <set>
#include <vector>

#include "tests/simt/check.h"
#include "tests/simt/launch_in_test.h"

namespace {

constexpr int kSeeds = 20;
constexpr unsigned kAll = 0xffffffffu;

__device__ long long sum_warp(long long value) {
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(kAll, value, delta);
  return value;
}

__device__ long long sum_block(long long value) {
  FUSEDSTEP_SHARED(long long, sums, 32);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const long long sum = sum_warp(value);
  __syncthreads();  // a former result has been read
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  long long total = 0;
  for (int w = 0; w < warps; ++w) total += sums[w];
  return total;
}

// Each block adds up its part; the last one to be done adds up the parts.
__global__ void sum_all(const int* values, int count, long long* parts, unsigned* ticket,
                        long long* out) {
  FUSEDSTEP_SHARED(bool, is_last, 1);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const long long part = sum_block(i < count ? values[i] : 0);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = part;
    __threadfence();
    is_last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last[0]) return;
  const long long total = sum_block(threadIdx.x < gridDim.x ? parts[threadIdx.x] : 0);
  if (threadIdx.x == 0) *out = total;
}

void test_reduction() {
  std::vector<int> values(1000);
  std::iota(values.begin(), values.end(), 1);
  simt::for_seeds(kSeeds, [&](int) {
    std::vector<long long> parts(8), out(1);
    std::vector<unsigned> ticket(1);
    for (int repeat = 0; repeat < 2; ++repeat) {
      out[0] = 0;
      simt::run(sum_all, 8, 128, values.data(), 1000, parts.data(), ticket.data(), out.data());
      CHECK(out[0] == 500500);
      CHECK(ticket[0] == 0);
    }
  });
}

__global__ void votes(unsigned* out) {
  const unsigned t = threadIdx.x;
  out[0 * 64 + t] = __ballot_sync(kAll, t % 3 == 0);
  out[1 * 64 + t] = static_cast<unsigned>(__any_sync(kAll, t == 40));
  out[2 * 64 + t] = static_cast<unsigned>(__all_sync(kAll, t < 32));
  out[3 * 64 + t] = static_cast<unsigned>(__syncthreads_count(t % 4 == 0));
  out[4 * 64 + t] = static_cast<unsigned>(__syncthreads_or(t == 63));
  out[5 * 64 + t] = static_cast<unsigned>(__syncthreads_and(t != 5));
  // Two halves of a warp that part and vote for themselves.
  const unsigned half = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  if (t % 32 < 16) {
    out[6 * 64 + t] = __ballot_sync(half, true);
  } else {
    out[6 * 64 + t] = __ballot_sync(half, t % 2);
  }
  // One half goes first, the other waits for it where all meet again.
  unsigned first = 0;
  if (t % 32 < 16) first = __ballot_sync(0x0000ffffu, true);
  out[7 * 64 + t] = __ballot_sync(kAll, first != 0);
}

void test_votes() {
  simt::for_seeds(kSeeds, [&](int) {
    std::vector<unsigned> out(8 * 64);
    simt::run(votes, 1, 64, out.data());
    bool right = true;
    for (unsigned t = 0; t < 64; ++t) {
      right &= out[0 * 64 + t] == (t < 32 ? 0x49249249u : 0x92492492u);
      right &= out[1 * 64 + t] == (t < 32 ? 0u : 1u);
      right &= out[2 * 64 + t] == (t < 32 ? 1u : 0u);
      right &= out[3 * 64 + t] == 16 && out[4 * 64 + t] == 1 && out[5 * 64 + t] == 0;
      right &= out[6 * 64 + t] == (t % 32 < 16 ? 0x0000ffffu : 0xaaaa0000u);
      right &= out[7 * 64 + t] == 0x0000ffffu;
    }
    CHECK(right);
  });
}

__global__ void shuffles(double* out) {
  const int t = static_cast<int>(threadIdx.x);
  const double value = t + 0.25;
  out[0 * 32 + t] = __shfl_sync(kAll, value, 5);
  out[1 * 32 + t] = __shfl_up_sync(kAll, value, 3);
  out[2 * 32 + t] = __shfl_down_sync(kAll, value, 3, 8);
  out[3 * 32 + t] = __shfl_xor_sync(kAll, value, 16);
  out[4 * 32 + t] = __shfl_sync(kAll, static_cast<float>(t), 1, 4);
}

void test_shuffles() {
  simt::for_seeds(kSeeds, [&](int) {
    std::vector<double> out(5 * 32);
    simt::run(shuffles, 1, 32, out.data());
    bool right = true;
    for (int t = 0; t < 32; ++t) {
      right &= out[0 * 32 + t] == 5.25;
      right &= out[1 * 32 + t] == (t < 3 ? t : t - 3) + 0.25;
      right &= out[2 * 32 + t] == (t % 8 + 3 < 8 ? t + 3 : t) + 0.25;
      right &= out[3 * 32 + t] == (t ^ 16) + 0.25;
      right &= out[4 * 32 + t] == t / 4 * 4 + 1;
    }
    CHECK(right);
  });
}

// A chain through shared memory that only __syncwarp orders.
__global__ void rotate_in_warp(int* out) {
  FUSEDSTEP_SHARED(int, ring, 64);
  const int t = static_cast<int>(threadIdx.x), next = t / 32 * 32 + (t + 1) % 32;
  ring[t] = t;
  for (int i = 0; i < 32; ++i) {
    __syncwarp();
    const int value = ring[next];
    __syncwarp();
    ring[t] = value;
  }
  out[t] = ring[t];
}

void test_syncwarp() {
  simt::for_seeds(kSeeds, [&](int) {
    std::vector<int> out(64);
    simt::run(rotate_in_warp, 1, 64, out.data());
    bool right = true;
    for (int t = 0; t < 64; ++t) right &= out[t] == t;
    CHECK(right);
  });
}

// Instances of a template declare arrays of their own, as in CUDA.
template <typename T>
__device__ T keep(T value) {
  FUSEDSTEP_SHARED(T, kept, 1);
  if (threadIdx.x == 0 && value != 0) kept[0] = value;
  __syncthreads();
  return kept[0];
}

__global__ void keep_two(float* out) {
  keep<float>(1.5f);
  keep<int>(7);
  const float kept = keep<float>(0.f) + static_cast<float>(keep<int>(0));
  if (threadIdx.x == 0) *out = kept;
}

void test_template_instances() {
  float out = 0;
  simt::run(keep_two, 1, 32, &out);
  CHECK(out == 8.5f);
}

__global__ void count(unsigned* counters) {
  atomicAdd(counters + 0, 2u);
  atomicInc(counters + 1, 6u);  // counts 0 to 6 and round again
  atomicMax(counters + 2, blockIdx.x * blockDim.x + threadIdx.x);
  unsigned seen = counters[3];
  for (unsigned old = seen + 1; old != seen;) {
    old = seen;
    seen = atomicCAS(counters + 3, old, old + 3);
  }
}

void test_atomics() {
  simt::for_seeds(kSeeds, [&](int) {
    std::vector<unsigned> counters(4);
    simt::run(count, 5, 40, counters.data());
    CHECK(counters == (std::vector<unsigned>{400, 200 % 7, 199, 600}));
  });
}

__global__ void record_order(unsigned* next, unsigned* order) {
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

void test_orders() {
  std::set<std::vector<unsigned>> orders;
  const auto order = [](int seed) {
    simt::configure({.seed = static_cast<std::uint64_t>(seed)});
    unsigned next = 0;
    std::vector<unsigned> order(6 * 40);
    simt::run(record_order, 6, 40, &next, order.data());
    return order;
  };
  for (int seed = 0; seed < kSeeds; ++seed) orders.insert(order(seed));
  CHECK(orders.size() == kSeeds);  // every seed draws another order,
  CHECK(order(3) == order(3));     // always the same one,
  for (auto numbers : orders) {    // in which each thread runs once.
    std::sort(numbers.begin(), numbers.end());
    bool right = true;
    for (unsigned i = 0; i < numbers.size(); ++i) right &= numbers[i] == i;
    CHECK(right);
  }
}

__global__ void number_threads(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * 24 + thread] += 1;
}

void test_dimensions() {
  std::vector<int> out(30 * 24);
  simt::run(number_threads, dim3(5, 3, 2), dim3(4, 3, 2), out.data());
  CHECK(out == std::vector<int>(30 * 24, 1));
  CHECK_THROWS(simt::Error, "invalid configuration", simt::run(number_threads, 0, 32, out.data()));
  CHECK_THROWS(simt::Error, "invalid configuration",
               simt::run(number_threads, 1, 1025, out.data()));
}

}  // namespace

int main() {
  test_reduction();
  test_votes();
  test_shuffles();
  test_syncwarp();
  test_template_instances();
  test_atomics();
  test_orders();
  test_dimensions();
  return check::summary();
}
