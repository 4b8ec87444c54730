// Numbers that are the same everywhere, arrays of them, and hashes of what kernels make of them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/dtypes.h"

namespace fusedstep::every_kernel {

// xorshift64* (Vigna 2016, https://doi.org/10.1145/2845077).
struct Numbers {
  uint64_t state = 0x9e3779b97f4a7c15u;
  uint64_t next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
  }
  // A float of either sign with a magnitude from 2^-16 to 2: exact in every dtype's arithmetic.
  float one() {
    const uint64_t bits = next();
    const auto exponent = static_cast<uint32_t>(111 + bits % 17);
    return std::bit_cast<float>(static_cast<uint32_t>(bits >> 63) << 31 | exponent << 23 |
                                (static_cast<uint32_t>(bits >> 20) & 0x7fffffu));
  }
};

struct Array {
  Dtype dtype;
  int64_t size;
  std::vector<std::byte> memory;

  void* data() { return memory.data(); }
  template <typename T>
  T* as() {
    return static_cast<T*>(data());
  }
};

inline Array zeros(Dtype dtype, int64_t size) {
  return {dtype, size, std::vector<std::byte>(size * width_of(dtype))};
}

inline Array random(Numbers& numbers, Dtype dtype, int64_t size, double scale = 1) {
  Array array = zeros(dtype, size);
  with_storage(dtype, [&](auto storage) {
    using T = decltype(storage);
    for (int64_t i = 0; i < size; ++i) {
      array.as<T>()[i] = store_as<T>(scale * numbers.one());
    }
  });
  return array;
}

// FNV-1a over the bytes, with one NaN for all, since CPUs differ in the NaN that they make.
struct Hash {
  uint64_t value = 0xcbf29ce484222325u;
  void add(uint64_t bits, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i) {
      value = (value ^ (bits >> 8 * i & 0xff)) * 0x100000001b3u;
    }
  }
  template <typename T>
  void add_all(const T* from, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      if constexpr (std::is_same_v<T, double>) {
        add(from[i] == from[i] ? std::bit_cast<uint64_t>(from[i]) : ~uint64_t{0}, 8);
      } else if constexpr (std::is_same_v<T, float>) {
        add(from[i] == from[i] ? std::bit_cast<uint32_t>(from[i]) : ~uint32_t{0}, 4);
      } else if constexpr (std::is_integral_v<T>) {
        add(static_cast<uint64_t>(from[i]), sizeof(T));
      } else {
        add(from[i].bits, 2);
      }
    }
  }
  void add_all(Array& array) {
    switch (array.dtype) {
      case Dtype::kInt8:
      case Dtype::kUInt8:
        return add_all(array.as<uint8_t>(), array.size);
      case Dtype::kInt16:
        return add_all(array.as<uint16_t>(), array.size);
      default:
        with_storage(array.dtype,
                     [&](auto storage) { add_all(array.as<decltype(storage)>(), array.size); });
    }
  }
};

inline void print(const std::string& name, const Hash& hash) {
  std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(hash.value));
}

inline const char* name_of(Dtype dtype) {
  constexpr const char* kNames[] = {"none",    "float32", "float64", "bfloat16",
                                    "float16", "int8",    "uint8",   "int16"};
  return kNames[static_cast<int>(dtype)];
}

constexpr Dtype kFloating[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16};

// One function for each folder of kernels.
void run_optim();
void run_linalg();
void run_lm_head();

}  // namespace fusedstep::every_kernel
