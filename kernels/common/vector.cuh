// Eight neighbouring elements of an array in a thread's registers, as they lie in memory: read and
// written 16 bytes at a time where the array is aligned for it.
#pragma once

#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep::cuda {

constexpr int kAccess = 16;  // bytes of the widest load and store

// Addresses come out of the tensor table, so nvcc cannot see that they lie in global memory and
// would choose the slower instructions that ask so at run time.
FUSEDSTEP_HD void assume_global([[maybe_unused]] const void* p) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(p));
#endif
}

// Elements that a thread takes at once: 16 bytes, where all arrays are of the compute type, else 16
// bytes of the narrowest floating-point one.
template <typename T, bool uniform>
constexpr int kPack = (uniform ? kAccess : 2 * kAccess) / sizeof(T);

// Room for a pack of anything up to the compute type. Filled without a look at what the elements
// are, so that the loads of all arrays are under way before the first is waited for.
struct Raw {
  uint32_t words[8];
};

template <int bytes>
struct alignas(bytes) Access {
  uint32_t words[bytes / 4];
};

// Whether packs of `bytes` that begin at p are read and written whole.
FUSEDSTEP_HD bool aligned_for(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % (bytes < kAccess ? bytes : kAccess) == 0;
}

template <int bytes>
FUSEDSTEP_HD void load_whole(const void* from, Raw& to) {
  constexpr int kBytes = bytes < kAccess ? bytes : kAccess;
  assume_global(from);
  const auto* accesses = static_cast<const Access<kBytes>*>(from);
#pragma unroll
  for (int a = 0; a < bytes / kBytes; ++a) {
    const Access<kBytes> access = accesses[a];
#pragma unroll
    for (int w = 0; w < kBytes / 4; ++w) {
      to.words[a * (kBytes / 4) + w] = access.words[w];
    }
  }
}

template <int bytes>
FUSEDSTEP_HD void store_access(const uint32_t* words, Access<bytes>* to) {
#if defined(__CUDA_ARCH__)
  // Said in PTX: nvcc may take an assignment apart into stores of single elements.
  if constexpr (bytes == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
  } else if constexpr (bytes == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1])
                 : "memory");
  } else {
    static_assert(bytes == 4);
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(words[0]) : "memory");
  }
#else
  memcpy(to, words, bytes);
#endif
}

template <int bytes>
FUSEDSTEP_HD void store_whole(const Raw& from, void* to) {
  constexpr int kBytes = bytes < kAccess ? bytes : kAccess;
  auto* accesses = static_cast<Access<kBytes>*>(to);
#pragma unroll
  for (int a = 0; a < bytes / kBytes; ++a) {
    store_access(from.words + a * (kBytes / 4), accesses + a);
  }
}

// The first `count` of `n` elements, one by one: at a tensor's end and where it is not aligned.
template <typename Element, int n>
FUSEDSTEP_HD void load_singly(const Element* from, int count, Raw& to) {
  Element elements[n] = {};
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j < count) {
      assume_global(from + j);
      elements[j] = from[j];
    }
  }
  memcpy(&to, elements, sizeof(elements));
}

// float64 that is computed on as float32, which is rare, does not fit: it is narrowed as it comes.
template <int n>
FUSEDSTEP_HD void load_narrowed(const double* from, int count, Raw& to) {
  float narrowed[n] = {};
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j < count) {
      assume_global(from + j);
      narrowed[j] = static_cast<float>(from[j]);
    }
  }
  memcpy(&to, narrowed, sizeof(narrowed));
}

template <typename Element, int n>
FUSEDSTEP_HD void store_singly(const Raw& from, int count, Element* to) {
  Element elements[n];
  memcpy(elements, &from, sizeof(elements));
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j < count) {
      assume_global(to + j);
      to[j] = elements[j];
    }
  }
}

template <typename Element, int n>
FUSEDSTEP_HD void load_pack(const void* from, bool whole, int count, Raw& to) {
  if (whole) {
    load_whole<sizeof(Element) * n>(from, to);
  } else {
    load_singly<Element, n>(static_cast<const Element*>(from), count, to);
  }
}

template <typename Element, int n>
FUSEDSTEP_HD void store_pack(const Raw& from, bool whole, int count, void* to) {
  if (whole) {
    store_whole<sizeof(Element) * n>(from, to);
  } else {
    store_singly<Element, n>(from, count, static_cast<Element*>(to));
  }
}

// The elements of a pack as T, and back.
template <typename Element, typename T, int n>
FUSEDSTEP_HD void widen_pack(const Raw& from, T (&to)[n]) {
  Element elements[n];
  memcpy(elements, &from, sizeof(elements));
#pragma unroll
  for (int j = 0; j < n; ++j) {
    to[j] = load_as<T>(elements[j]);
  }
}

template <typename Element, typename T, int n>
FUSEDSTEP_HD void narrow_pack(const T (&from)[n], Raw& to) {
  Element elements[n];
#pragma unroll
  for (int j = 0; j < n; ++j) {
    elements[j] = store_as<Element>(from[j]);
  }
  memcpy(&to, elements, sizeof(elements));
}

}  // namespace fusedstep::cuda
