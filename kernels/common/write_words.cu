// Words from a kernel's argument to memory: one block, one word a thread at a time.
#include <algorithm>
#include <cstring>

#include "kernels/common/launch.cuh"
#include "kernels/common/write_words.cuh"

namespace fusedstep::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    write_words_kernel(const __grid_constant__ Words words, uint64_t* to, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    to[i] = words.word[i];
  }
}

}  // namespace

cudaError_t write_words(const std::byte* from, size_t bytes, std::byte* to, cudaStream_t stream) {
  Words words;
  for (size_t begin = 0; begin < bytes; begin += sizeof(Words)) {
    const size_t piece = std::min(sizeof(Words), bytes - begin);
    std::memcpy(words.word, from + begin, piece);
    const cudaError_t status =
        launch(write_words_kernel, 1, stream, words, reinterpret_cast<uint64_t*>(to + begin),
               piece / sizeof(uint64_t));
    if (status != cudaSuccess) {
      return status;
    }
  }
  return cudaSuccess;
}

}  // namespace fusedstep::cuda
