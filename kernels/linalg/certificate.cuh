// The proofs of full rank on the GPU: two launches, nothing read on the host.
#pragma once

#include <cuda_runtime.h>

#include "kernels/linalg/certificate.h"

namespace fusedstep::cuda {

// Addresses on the device; batch and width are at least 1.
cudaError_t certify(const Certificates& certificates, cudaStream_t stream);

}  // namespace fusedstep::cuda
