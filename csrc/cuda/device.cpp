// NVIDIA GPUs as a device: the kernels' launches on torch's current stream.
#include "csrc/device.h"

#include <torch/csrc/stable/accelerator.h>

#include <ranges>

#include "csrc/cuda/device_table.h"
#include "csrc/cuda/memory.h"
#include "csrc/cuda/solvers.h"
#include "kernels/linalg/certificate.cuh"
#include "kernels/linalg/gram.cuh"
#include "kernels/linalg/tiny_pinv.cuh"
#include "kernels/linalg/truncate.cuh"
#include "kernels/lm_head/segment_sum.cuh"
#include "kernels/lm_head/softmax.cuh"
#include "kernels/optim/norm.cuh"
#include "kernels/optim/qk_clip.cuh"
#include "kernels/optim/step.cuh"

namespace fusedstep {
namespace {

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// While it lives its device is the current one.
struct Current {
  explicit Current(int32_t device) : guard(device), stream(current_stream(device)) {}
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

void gram(const GramRows& rows, Workspace& workspace) {
  const Current current(workspace.device());
  const int64_t size = cuda::gram_partials(rows);
  auto* const partials = size > 0 ? workspace.empty<double>(size) : nullptr;
  cuda::check(cuda::gram(rows, partials, current.stream), "launching the Gram matrix");
}

void certify(const Certificates& certificates, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::check(cuda::certify(certificates, current.stream), "launching the certificate");
}

void truncate(const Truncation& truncation, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::check(cuda::truncate(truncation, current.stream), "launching the truncation");
}

void tiny_pinv(const TinyPinv& p, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::check(cuda::tiny_pinv(p, current.stream), "launching the tiny pseudo-inverses");
}

void inverse_of_cholesky_factor(const Squares& G, double* inverses, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::inverse_of_cholesky_factor(G, inverses, workspace, current.stream);
}

void eigh(const Squares& A, double* values, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::eigh(A, values, workspace, current.stream);
}

void svd(const Squares& R, double* U, double* values, double* Vh, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::svd(R, U, values, Vh, workspace, current.stream);
}

void segment_sum(const Segments& segments, Workspace& workspace) {
  const Current current(workspace.device());
  cuda::check(cuda::segment_sum(segments, current.stream), "launching the segment sum");
}

void softmax(const Softmax& softmax, Workspace& workspace) {
  const Current current(workspace.device());
  auto* const tickets = workspace.zeros<unsigned>(softmax.count);
  cuda::check(cuda::softmax_rows(softmax, tickets, current.stream), "launching the softmax");
}

void run_passes(const TableWork& work, const cuda::DeviceTable& table, cudaStream_t stream) {
  if (work.norm) {
    cuda::check(
        cuda::norm_pass(table.view(), work.norm->norm, work.norm->grad_scale, table.partials(),
                        table.ticket(), work.norm->out, work.norm->published, stream),
        "launching the norm pass");
  }
  if (work.step) {
    auto* const step_pass = find_rule<cuda::StepPass>(work.step->rule)->step;
    // Last launch first, as each of them takes its last chunk first: what the norm pass read last.
    for (const Launch& launch : std::views::reverse(work.table.layout.launches)) {
      cuda::check(step_pass(table.view(), work.step->clip, launch, table.finished(), stream),
                  "launching the step pass");
    }
  }
}

void run(const TableWork& work) {
  const Current current(work.device);
  if (work.copy == nullptr) {
    const cuda::BorrowedTable borrowed(work.device, current.stream);
    borrowed->synchronize(work.table, work.groups, current.stream);
    run_passes(work, *borrowed, current.stream);
    return;
  }
  if (*work.copy == nullptr) {
    *work.copy = std::make_unique<cuda::DeviceTable>();
  }
  auto& table = static_cast<cuda::DeviceTable&>(**work.copy);
  table.synchronize(work.table, work.groups, current.stream);
  run_passes(work, table, current.stream);
}

void qk_clip(const QkClipWork& work) {
  const Current current(work.device);
  const cuda::BorrowedTable borrowed(work.device, current.stream);
  borrowed->synchronize(work.table, std::as_bytes(work.heads), current.stream);
  cuda::check(cuda::qk_clip(borrowed->view(), work.threshold, current.stream),
              "launching the QK-Clip");
}

}  // namespace

const Device kCudaDevice{
    .gram = gram,
    .certify = certify,
    .truncate = truncate,
    .tiny_pinv = tiny_pinv,
    .row_space = nullptr,
    .small_pinv = nullptr,
    .inverse_of_cholesky_factor = inverse_of_cholesky_factor,
    .eigh = eigh,
    .svd = svd,
    .segment_sum = segment_sum,
    .softmax = softmax,
    .run = run,
    .qk_clip = qk_clip,
};

}  // namespace fusedstep
