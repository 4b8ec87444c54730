// Eigenvalues and eigenvectors of symmetric matrices on NVIDIA GPUs: cusolverDnXsyevBatched.
#include <torch/csrc/stable/accelerator.h>

#include <cstddef>
#include <vector>

#include "csrc/cuda/decompositions.h"
#include "csrc/cuda/solver_handles.h"
#include "csrc/cuda/solver_ops.h"
#include "csrc/cuda/stream.h"

namespace fusedstep::cuda {

std::tuple<Tensor, Tensor, Tensor> eigh(const Tensor& A) {
  const int64_t n = require_squares("eigh", "A", A);
  const int64_t batch = A.size(0);
  const torch::stable::accelerator::DeviceGuard guard(A.get_device());
  Tensor vectors = packed_copy(A);
  const Tensor values = empty_beside(A, {batch, n});
  const Tensor info = no_failures(A);
  const SolverHandles handles(A.get_device(), current_stream(A.get_device()));
  in_pieces(batch, n * n, [&](int64_t first, int64_t count) {
    // The upper triangle of the transpose is the lower one of A, as torch.linalg.eigh reads.
    const auto solve = [&](auto function, auto... workspace) {
      return function(handles->cusolver, handles->eigh, CUSOLVER_EIG_MODE_VECTOR,
                      CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, doubles(vectors) + first * n * n, n,
                      CUDA_R_64F, doubles(values) + first * n, CUDA_R_64F, workspace..., count);
    };
    size_t on_device = 0, on_host = 0;
    check(solve(handles->library.cusolverDnXsyevBatched_bufferSize, &on_device, &on_host),
          "cusolverDnXsyevBatched_bufferSize");
    Tensor work = empty_beside(A, {static_cast<int64_t>(on_device)}, ScalarType::Byte);
    // cuSOLVER 11.7.1 takes what is there for its own: without the zeros its vectors are wrong.
    torch::stable::zero_(work);
    std::vector<std::byte> host_work(on_host);  // until the call returns: torch keeps no more
    check(solve(handles->library.cusolverDnXsyevBatched, work.data_ptr(), on_device,
                host_work.data(), on_host, ints(info) + first),
          "cusolverDnXsyevBatched");
  });
  return {values, torch::stable::transpose(vectors, 1, 2), info};
}

}  // namespace fusedstep::cuda
