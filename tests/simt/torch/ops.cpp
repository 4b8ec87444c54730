// The CUDA ops of csrc/cuda on CPU tensors: namespace fusedstep_simt, for
// tests/optim/test_cuda_on_host.py.
#include <torch/csrc/stable/library.h>

#include "csrc/clip_ops.h"
#include "csrc/cuda/decompositions.h"
#include "csrc/cuda/gram.h"
#include "csrc/cuda/passes.h"
#include "csrc/cuda/rank.h"
#include "csrc/cuda/segment_sum.h"
#include "csrc/cuda/softmax.h"
#include "csrc/cuda/solver_ops.h"
#include "csrc/cuda/tiny_pinv.h"
#include "csrc/step_ops.h"
#include "tests/simt/torch/solvers.h"

// What passes.h asks of torch about CUDA devices; this module links them to itself.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
extern "C" AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
extern "C" AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  return AOTI_TORCH_SUCCESS;
}

namespace {

using Clip = fusedstep::ClipOps<fusedstep::cuda::Passes>;
using Step = fusedstep::StepOps<fusedstep::cuda::Passes>;
using SegmentSum = fusedstep::SegmentSumOps<fusedstep::cuda::SegmentSumKernels>;
using Softmax = fusedstep::SoftmaxOps<fusedstep::cuda::SoftmaxKernels>;
using Rank = fusedstep::RankOps<fusedstep::cuda::RankKernels>;

void seed(int64_t value) { simt::configure({.seed = static_cast<uint64_t>(value)}); }

void begin_capture() {
  simt::device.graph.clear();
  simt::device.capturing = true;
}

// Returns the number of blocks of each kernel that the graph holds.
std::vector<int64_t> end_capture() {
  simt::device.capturing = false;
  std::vector<int64_t> blocks;
  for (const auto& kernel : simt::device.graph) blocks.push_back(kernel.blocks);
  return blocks;
}

void replay() {
  for (const auto& kernel : simt::device.graph) kernel.run();
}

void begin_capture_elsewhere() {
  simt::device.capturing_elsewhere = true;
  simt::device.invalidated = false;
}

// Returns whether the capture is still valid.
bool end_capture_elsewhere() {
  simt::device.capturing_elsewhere = false;
  return !simt::device.invalidated;
}

// From here on kernels are late, as copies are.
void hold() { simt::device.hold = true; }

// The end of hold(): everything asked for is done, in order.
void finish() {
  simt::device.hold = false;
  simt::device.finish(nullptr, true);
}

void fail_next(std::string call) { simt::device.fail_next = call; }
int64_t last_error() { return cudaPeekAtLastError(); }
int64_t freed_too_early() { return simt::device.freed_too_early; }

// Where the table of `tensors` lies that a list op would borrow on a device's default stream.
int64_t borrowed_memory(const fusedstep::Tensors& tensors, int64_t device) {
  fusedstep::TensorTable table;
  table.assign("borrowed_memory", tensors);
  const fusedstep::cuda::BorrowedDeviceTable borrowed(static_cast<int32_t>(device), nullptr);
  (*borrowed).synchronize(table, nullptr, 0, nullptr);
  return reinterpret_cast<int64_t>((*borrowed).view().groups);
}

int64_t uploads(int64_t table) {
  auto& tensors = *reinterpret_cast<fusedstep::TensorTable*>(table);
  return fusedstep::cuda::device_side(tensors).uploads();
}

// What the stand-ins of cuBLAS and cuSOLVER are told (solvers.h).
void libraries_missing(bool missing) { solvers::told.missing = missing; }
void gives_up(int64_t matrix) { solvers::told.gives_up = matrix; }
int64_t library_calls() { return solvers::told.calls; }
int64_t library_handles() { return solvers::told.handles; }

// How many matrices the pieces of a batch have, and that they follow one another.
std::vector<int64_t> pieces(int64_t batch, int64_t elements) {
  std::vector<int64_t> counts;
  int64_t expected = 0;
  fusedstep::cuda::in_pieces(batch, elements, [&](int64_t first, int64_t count) {
    counts.push_back(first == expected ? count : -1);
    expected += count;
  });
  return counts;
}

int64_t allocations() { return static_cast<int64_t>(simt::device.allocated.size()); }

}  // namespace

STABLE_TORCH_LIBRARY(fusedstep_simt, m) {
  m.def("total_norm(Tensor[] tensors, float norm_type, Tensor? grad_scale) -> Tensor");
  m.def("clip_by_norm_(Tensor(a!)[] tensors, Tensor norm, float max_norm) -> ()");
  m.def(
      "table_step_(int table, str rule, Tensor(a!) param, float[] groups, int seed, Tensor[] lrs, "
      "int[] lr_groups, Tensor(b!)? norm, float norm_type, Tensor? grad_scale, Tensor? found_inf, "
      "float max_norm, bool skip_nonfinite) -> ()");
  m.def("segment_sum_(Tensor(a!) sums, Tensor rows, Tensor order, Tensor ids) -> ()");
  m.def("softmax_losses(Tensor logits, Tensor tokens) -> Tensor");
  m.def("softmax_directions_(Tensor(a!) logits, Tensor tokens) -> Tensor");
  m.def(
      "root_steps_(Tensor(a!) logits, Tensor tokens, Tensor squares, Tensor? gram, "
      "float loss_constant, bool uphill) -> Tensor");
  m.def("seed(int value) -> ()");
  m.def("begin_capture() -> ()");
  m.def("end_capture() -> int[]");
  m.def("replay() -> ()");
  m.def("uploads(int table) -> int");
  m.def("allocations() -> int");
  m.def("begin_capture_elsewhere() -> ()");
  m.def("end_capture_elsewhere() -> bool");
  m.def("hold() -> ()");
  m.def("finish() -> ()");
  m.def("fail_next(str call) -> ()");
  m.def("last_error() -> int");
  m.def("freed_too_early() -> int");
  m.def("borrowed_memory(Tensor[] tensors, int device) -> int");
  m.def("gram_(Tensor(a!) gram, Tensor rows) -> ()");
  m.def(
      "pinv_tiny(Tensor A, Tensor atol, Tensor rtol, bool jacobi) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def("inverse_of_cholesky_factor(Tensor G) -> (Tensor, Tensor)");
  m.def("eigh(Tensor A) -> (Tensor, Tensor, Tensor)");
  m.def("svd(Tensor R) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("libraries_missing(bool missing) -> ()");
  m.def("gives_up(int matrix) -> ()");
  m.def("library_calls() -> int");
  m.def("library_handles() -> int");
  m.def("pieces(int batch, int elements) -> int[]");
  m.def(
      "certify(Tensor gram, Tensor inverse, Tensor exists, Tensor atol, Tensor rtol, int count) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "truncate_scale(Tensor values, Tensor vectors, Tensor atol, Tensor rtol, int gram_count=0) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep_simt, CompositeExplicitAutograd, m) {
  m.impl("total_norm", TORCH_BOX(&Clip::total_norm));
  m.impl("clip_by_norm_", TORCH_BOX(&Clip::clip_by_norm_));
  m.impl("table_step_", TORCH_BOX(&Step::table_step_));
  m.impl("segment_sum_", TORCH_BOX(&SegmentSum::segment_sum_));
  m.impl("softmax_losses", TORCH_BOX(&Softmax::softmax_losses));
  m.impl("softmax_directions_", TORCH_BOX(&Softmax::softmax_directions_));
  m.impl("root_steps_", TORCH_BOX(&Softmax::root_steps_));
  m.impl("seed", TORCH_BOX(&seed));
  m.impl("begin_capture", TORCH_BOX(&begin_capture));
  m.impl("end_capture", TORCH_BOX(&end_capture));
  m.impl("replay", TORCH_BOX(&replay));
  m.impl("uploads", TORCH_BOX(&uploads));
  m.impl("allocations", TORCH_BOX(&allocations));
  m.impl("begin_capture_elsewhere", TORCH_BOX(&begin_capture_elsewhere));
  m.impl("end_capture_elsewhere", TORCH_BOX(&end_capture_elsewhere));
  m.impl("hold", TORCH_BOX(&hold));
  m.impl("finish", TORCH_BOX(&finish));
  m.impl("fail_next", TORCH_BOX(&fail_next));
  m.impl("last_error", TORCH_BOX(&last_error));
  m.impl("freed_too_early", TORCH_BOX(&freed_too_early));
  m.impl("borrowed_memory", TORCH_BOX(&borrowed_memory));
  m.impl("gram_", TORCH_BOX(&fusedstep::GramOps<fusedstep::cuda::GramKernels>::gram_));
  m.impl("pinv_tiny",
         TORCH_BOX(&fusedstep::TinyPinvOps<fusedstep::cuda::TinyPinvKernels>::pinv_tiny));
  m.impl("inverse_of_cholesky_factor", TORCH_BOX(&fusedstep::cuda::inverse_of_cholesky_factor));
  m.impl("eigh", TORCH_BOX(&fusedstep::cuda::eigh));
  m.impl("svd", TORCH_BOX(&fusedstep::cuda::svd));
  m.impl("libraries_missing", TORCH_BOX(&libraries_missing));
  m.impl("gives_up", TORCH_BOX(&gives_up));
  m.impl("library_calls", TORCH_BOX(&library_calls));
  m.impl("library_handles", TORCH_BOX(&library_handles));
  m.impl("pieces", TORCH_BOX(&pieces));
  m.impl("certify", TORCH_BOX(&Rank::certify));
  m.impl("truncate_scale", TORCH_BOX(&Rank::truncate_scale));
}
