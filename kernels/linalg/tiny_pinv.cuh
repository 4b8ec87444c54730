// The pseudo-inverses of tiny matrices on the GPU: one launch for all ranks.
#pragma once

#include <cuda_runtime.h>

#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cuda {

// Matrices of one type and size: a source file for each (tiny_pinv_of.cu.in).
template <typename Storage, int side>
cudaError_t tiny_pinv_of(const TinyPinv& p, cudaStream_t stream);

// `p` holds addresses on the device; there is a matrix, and it has an element.
inline cudaError_t tiny_pinv(const TinyPinv& p, cudaStream_t stream) {
  return tiny::with_storage_and_side(p, [&](auto storage, auto side) {
    return tiny_pinv_of<decltype(storage), decltype(side)::value>(p, stream);
  });
}

}  // namespace fusedstep::cuda
