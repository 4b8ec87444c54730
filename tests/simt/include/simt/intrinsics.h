// CUDA's device intrinsics, in terms of the SIMT harness.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "simt/runtime.h"

inline void __syncthreads(simt::Where where = simt::Where::current()) {
  simt::block_barrier("__syncthreads", false, where);
}
inline int __syncthreads_count(int predicate, simt::Where where = simt::Where::current()) {
  return static_cast<int>(simt::block_barrier("__syncthreads_count", predicate != 0, where));
}
inline int __syncthreads_or(int predicate, simt::Where where = simt::Where::current()) {
  return simt::block_barrier("__syncthreads_or", predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, simt::Where where = simt::Where::current()) {
  return simt::block_barrier("__syncthreads_and", predicate == 0, where) == 0;
}

inline void __syncwarp(unsigned mask = ~0u, simt::Where where = simt::Where::current()) {
  simt::warp_barrier("__syncwarp", mask, where);
}
inline int __any_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return simt::warp_vote("__any_sync", mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return simt::warp_vote("__all_sync", mask, predicate != 0, where) == mask;
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              simt::Where where = simt::Where::current()) {
  return simt::warp_vote("__ballot_sync", mask, predicate != 0, where);
}

namespace simt {

template <typename T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <Shuffled T>
T shuffle(const char* name, unsigned mask, T value, unsigned source, const Where& where) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const auto bits = warp_shuffle(name, mask, std::bit_cast<Bits>(value), source, where);
  return std::bit_cast<T>(static_cast<Bits>(bits));
}

// The first lane of the calling lane's segment of `width` lanes.
inline unsigned segment(int width) { return lane() & ~(static_cast<unsigned>(width) - 1u); }

}  // namespace simt

// A source outside the segment means the calling lane itself, as in CUDA.
template <simt::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              simt::Where where = simt::Where::current()) {
  const unsigned offset = static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1u);
  return simt::shuffle("__shfl_sync", mask, value, simt::segment(width) + offset, where);
}
template <simt::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Where where = simt::Where::current()) {
  const unsigned lane = simt::lane();
  const bool inside = lane - simt::segment(width) >= delta;
  return simt::shuffle("__shfl_up_sync", mask, value, inside ? lane - delta : lane, where);
}
template <simt::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Where where = simt::Where::current()) {
  const unsigned lane = simt::lane();
  const bool inside = lane - simt::segment(width) + delta < static_cast<unsigned>(width);
  return simt::shuffle("__shfl_down_sync", mask, value, inside ? lane + delta : lane, where);
}
template <simt::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  simt::Where where = simt::Where::current()) {
  const unsigned lane = simt::lane();
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  const bool inside = source < simt::segment(width) + static_cast<unsigned>(width);
  return simt::shuffle("__shfl_xor_sync", mask, value, inside ? source : lane, where);
}

// Fences and atomics let other threads run before and after. The harness is sequentially
// consistent, so it cannot notice that a fence is missing.
inline void __threadfence() { simt::yield(); }
inline void __threadfence_block() { simt::yield(); }

namespace simt {

template <typename T, typename Update>
T atomic(T* address, Update update) {
  yield();
  const unsigned held = hold_preemption();
  const T old = *address;
  *address = update(old);
  release_preemption(held);
  yield();
  return old;
}

}  // namespace simt

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return simt::atomic(address, [=](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return simt::atomic(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return simt::atomic(address, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return simt::atomic(address, [=](T old) { return old | value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return simt::atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return simt::atomic(address, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return simt::atomic(address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}

// Loads and stores with a cache hint are plain ones.
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

// CUDA has min and max in the global namespace, as overloads and not as templates.
#define SIMT_MIN_MAX(T)                            \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
// Of a number and a NaN, CUDA takes the number.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
