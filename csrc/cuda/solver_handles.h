// What calls into cuBLAS and cuSOLVER need, borrowed for the length of one op.
#pragma once

#include <memory>

#include "csrc/cuda/pool.h"
#include "csrc/cuda/solver_library.h"

namespace fusedstep::cuda {

// torch has handles too, but in a library that it opens late and that cannot be linked.
struct Handles {
  Handles();
  ~Handles();
  Handles(const Handles&) = delete;

  const SolverLibrary& library = solver_library();
  cublasHandle_t cublas = nullptr;
  cusolverDnHandle_t cusolver = nullptr;
  cusolverDnParams_t eigh = nullptr;
  gesvdjInfo_t svd = nullptr;

 private:
  struct Empty {};
  explicit Handles(Empty) {}
};

// Made once for a stream of a device, or once for each thread that uses the stream at a time: a
// handle serves one thread. The device is current and the stream may be in capture.
class SolverHandles {
 public:
  SolverHandles(int32_t device, cudaStream_t stream);
  ~SolverHandles();
  SolverHandles(const SolverHandles&) = delete;
  const Handles* operator->() const { return handles_.get(); }

 private:
  StreamKey key_;
  std::unique_ptr<Handles> handles_;
};

}  // namespace fusedstep::cuda
