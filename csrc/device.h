// What a device provides to the ops: one struct of functions, which csrc/cpu_device.cpp fills in
// for the CPU and csrc/cuda/device.cpp for NVIDIA GPUs. The ops check their arguments and allocate;
// a device only computes. So the CUDA functions also run on the host, over CPU tensors, where they
// are compiled against a stand-in for CUDA (tests/simt).
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "csrc/tensor.h"
#include "kernels/linalg/gram.h"
#include "kernels/linalg/row_space.h"
#include "kernels/linalg/tiny_pinv.h"
#include "kernels/linalg/truncate.h"
#include "kernels/lm_head/segment_sum.h"
#include "kernels/lm_head/softmax.h"
#include "kernels/optim/clip.h"
#include "kernels/optim/qk_clip.h"
#include "kernels/optim/table.h"

namespace fusedstep {

// Memory for one op on the device of its tensors, from torch's allocator, until the op returns.
class Workspace {
 public:
  explicit Workspace(const Tensor& tensor) : tensor_(tensor) {}
  Workspace(const Workspace&) = delete;

  // For a part of the op: its memory goes back when the part ends, to be reused in stream order.
  Workspace part() const { return Workspace(tensor_); }

  int32_t device() const { return tensor_.get_device(); }

  template <typename T>
  T* empty(int64_t count) {
    const auto bytes = count * static_cast<int64_t>(sizeof(T));
    kept_.push_back(empty_on(tensor_, {bytes}, ScalarType::Byte));
    return static_cast<T*>(kept_.back().data_ptr());
  }

  template <typename T>
  T* zeros(int64_t count) {
    T* const data = empty<T>(count);
    torch::stable::zero_(kept_.back());
    return data;
  }

 private:
  Tensor tensor_;
  Tensors kept_;
};

// A batch of square float64 matrices, one after the other without gaps, to be overwritten. `info`
// is 0 for each and becomes nonzero for one that fails.
struct Squares {
  double* data;
  int64_t count, rows;
  int32_t* info;
};

// The decompositions count elements in int.
constexpr int64_t kMostRows = 46340;  // whose square fits
constexpr int64_t kSvdColumns = 32;   // as many as cusolverDnDgesvdjBatched takes

// The plain data of a tensor table (csrc/optim/tensor_table.h), in host memory.
struct TableData {
  Layout layout;
  std::vector<void*> grads;  // in the order of the layout's rows
  int64_t version = 0;       // of the layout: counts how often the rows were laid out anew

  // Of tensors that are rewritten in place: each is parameter and gradient.
  static TableData in_place(const std::vector<Row>& tensors) {
    TableData data;
    data.layout = make_layout(tensors);
    data.grads.reserve(tensors.size());
    for (const Row& row : data.layout.rows) {
      data.grads.push_back(row.param);
    }
    return data;
  }
};

// What a device keeps of a table between ops, for instance its copy on a GPU.
struct DeviceCopy {
  virtual ~DeviceCopy() = default;
};

struct NormWork {
  Norm norm;
  const float* grad_scale;  // null: 1
  double* out;
  float* published = nullptr;  // null, or where it is wanted as float32 as well
};

struct StepWork {
  std::string_view rule;  // the stem of a file in kernels/optim/rules
  Clip clip;
};

// What an op does with a table: a norm, a step, or the one and then the other.
struct TableWork {
  const TableData& table;
  std::span<const std::byte> groups;  // of GroupOf<Rule>; empty where there is no step
  std::optional<NormWork> norm;
  std::optional<StepWork> step;
  int32_t device;
  std::unique_ptr<DeviceCopy>* copy;  // null: the table does not outlive the op
};

struct QkClipWork {
  const TableData& table;
  std::span<const QkHeads> heads;  // in the order of the layout's rows
  double threshold;
  int32_t device;
};

// Every function returns when the work is queued on the device's current stream, which on a CPU
// means done. Arguments hold addresses on the device; nothing is empty.
struct Device {
  void (*gram)(const GramRows&, Workspace&);
  void (*certify)(const Certificates&, Workspace&);
  void (*truncate)(const Truncation&, Workspace&);
  void (*tiny_pinv)(const TinyPinv&, Workspace&);

  // Null on a GPU, where eigh serves.
  void (*row_space)(const RowSpaces&, Workspace&);
  // Whether all is proved, by kernels/linalg/small_pinv.h.
  bool (*small_pinv)(const TinyPinv&, Workspace&);

  // Null where torch's own serve, as on a CPU. Matrices are row by row unless it says otherwise.
  // L⁻¹ of G = L Lᵀ.
  void (*inverse_of_cholesky_factor)(const Squares& G, double* inverses, Workspace&);
  // The lower triangle of A becomes V, column by column, with A = V λ Vᵀ, λ ascending.
  void (*eigh)(const Squares& A, double* values, Workspace&);
  // R = U σ Vᵀ, σ descending, U column by column, `Vh` = Vᵀ.
  void (*svd)(const Squares& R, double* U, double* values, double* Vh, Workspace&);

  void (*segment_sum)(const Segments&, Workspace&);
  void (*softmax)(const Softmax&, Workspace&);

  void (*run)(const TableWork&);
  void (*qk_clip)(const QkClipWork&);
};

// The name of the Python capsule in which a module hands over the address of its Device.
constexpr const char* kDeviceCapsule = "fusedstep.Device";

extern const Device kCpuDevice;   // csrc/cpu_device.cpp, in _C
extern const Device kCudaDevice;  // csrc/cuda/device.cpp, in _C_cuda

// The device of a tensor. Raises where none was handed over (csrc/device.cpp).
const Device& device_of(const Tensor& tensor);

}  // namespace fusedstep

// Registers an op's functions for tensors of both devices:
//   FUSEDSTEP_IMPL(m) { m.impl("name", TORCH_BOX(&function)); }
#define FUSEDSTEP_IMPL(m)                                                   \
  static void implement(auto& m);                                           \
  STABLE_TORCH_LIBRARY_IMPL(fusedstep, CPU, on_cpu) { implement(on_cpu); }  \
  STABLE_TORCH_LIBRARY_IMPL(fusedstep, CUDA, on_gpu) { implement(on_gpu); } \
  static void implement(auto& m)

// The same for tensors that are not what their memory says: lazy negations, conjugates and zeros.
// Where nothing is registered for them, torch hands over a copy, which lies elsewhere.
#define FUSEDSTEP_IMPL_LAZY(m)                                                           \
  static void implement_lazy(auto& m);                                                   \
  STABLE_TORCH_LIBRARY_IMPL(fusedstep, Negative, negative) { implement_lazy(negative); } \
  STABLE_TORCH_LIBRARY_IMPL(fusedstep, Conjugate, conj) { implement_lazy(conj); }        \
  STABLE_TORCH_LIBRARY_IMPL(fusedstep, ZeroTensor, zero) { implement_lazy(zero); }       \
  static void implement_lazy(auto& m)
