// Sends a few bytes to the GPU as the argument of a kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fusedstep::cuda {

// A kernel's arguments have 4096 bytes: these, an address and a number.
struct Words {
  static constexpr size_t kCount = 508;
  uint64_t word[kCount];
};

// Beyond them one copy from page-locked memory costs less than so many launches.
constexpr size_t kMostWrittenBytes = 4 * sizeof(Words);

// Like cudaMemcpyAsync, but needs no page-locked memory and no event that tells when it may be used
// again: CUDA keeps a copy of the arguments until the kernel has run. Whole words, aligned to them.
cudaError_t write_words(const std::byte* from, size_t bytes, std::byte* to, cudaStream_t stream);

}  // namespace fusedstep::cuda
