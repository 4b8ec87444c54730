// Tensors of torch's device type CUDA in the host's memory: torch's own ops on them run its CPU
// kernels, and fusedstep's ops find them under torch's key for CUDA, as they do on a GPU. With
// csrc/cuda's Device handed over for "cuda", a program written for a GPU runs here unchanged, with
// CPU and CUDA tensors side by side (bench/gpu/rehearsal.py).
//
// Nothing changes before take_cuda is called; then all of torch's kernels for CUDA are replaced.
#undef TORCH_TARGET_VERSION  // the dispatcher is not in torch's stable interface

#include "tests/simt/torch/cuda_tensors.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cuda_runtime.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace {

using c10::Device, c10::DispatchKey, c10::IValue, c10::OperatorHandle, torch::jit::Stack;

const Device kGpu(c10::kCUDA, 0);
constexpr c10::DispatchKeySet kCpuKernels(DispatchKey::CPU);

// --- memory ---

std::atomic<size_t> bytes_now{0}, bytes_most{0};

using Block = std::shared_ptr<void>;
std::vector<Block>* kept_by_capture = nullptr;  // what a capture allocates its graph needs

// Of the host, but its tensors say "cuda:0".
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, kGpu};
    constexpr size_t kAlign = 512;  // as torch's allocator on a GPU
    void* const data = std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
    std::memset(data, 0xa5, bytes);  // CUDA promises nothing either
    bytes_most = std::max<size_t>(bytes_most, bytes_now += bytes);
    const auto release = [bytes](void* memory) {
      bytes_now -= bytes;
      std::free(memory);
    };
    auto* const block = new Block(data, release);
    if (kept_by_capture != nullptr) kept_by_capture->push_back(*block);
    return {data, block, [](void* owner) { delete static_cast<Block*>(owner); }, kGpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &memory, c10::DispatchKeySet(DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &memory,
                                           c10::DispatchKeySet(DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

// --- ops ---

std::atomic<size_t> kernels{0};       // of torch: computing ops so far
bool waiting_is_an_error = false;     // torch.cuda.set_sync_debug_mode
thread_local bool computing = false;  // inside an op: what it calls is its own
// Of torch.Generator("cuda"), which draws the CPU's numbers; never freed, for Python ends before
// us.
std::vector<at::Generator>& generators = *new std::vector<at::Generator>;

// A CPU tensor over the same memory.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(),
                       tensor.options().device(c10::kCPU));
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return on_cpu(to).copy_(on_cpu(from));
}

bool writes(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

bool writes_something(const OperatorHandle& op) {
  return std::ranges::any_of(op.schema().arguments(), writes);
}

// Views and changes of a tensor's memory: the CPU's kernels take a tensor of any device.
bool concerns_only_memory(const OperatorHandle& op) {
  static const std::set<std::string> kNames = {"aten::resize_", "aten::set_", "aten::resize_as_"};
  if (kNames.contains(op.operator_name().name)) return true;
  return std::ranges::any_of(op.schema().returns(), [](const c10::Argument& result) {
    return result.alias_info() != nullptr && !result.alias_info()->isWrite();
  });
}

// Whether the host learns something from the device, or gives it pageable memory to read.
bool waits(const OperatorHandle& op, const Stack& arguments) {
  static const std::set<std::string> kReads = {"aten::_local_scalar_dense",
                                               "aten::nonzero",
                                               "aten::equal",
                                               "aten::masked_select",
                                               "aten::_unique2",
                                               "aten::unique_dim",
                                               "aten::bincount",
                                               "aten::repeat_interleave"};
  const std::string& name = op.operator_name().name;
  if (name == "aten::copy_") {
    const bool within = arguments[0].toTensor().device() == arguments[1].toTensor().device();
    return !within && !arguments[2].toBool();
  }
  if (name == "aten::index") {
    for (const auto& index : arguments[1].toOptionalTensorVector()) {
      if (index.has_value() && index->defined() && index->scalar_type() == at::kBool) return true;
    }
  }
  return kReads.contains(name);
}

void check_generator(const Stack& arguments) {
  for (const IValue& value : arguments) {
    if (!value.isGenerator()) continue;
    const at::Generator generator = value.toGenerator();
    TORCH_CHECK(
        !generator.defined() || std::ranges::find(generators, generator) != generators.end(),
        "Expected a 'cuda' device type for generator but found 'cpu'");
  }
}

// As torch does: only scalars may come from the CPU.
void check_devices(const OperatorHandle& op, const Stack& arguments) {
  if (op.operator_name().name == "aten::copy_") return;
  const bool indices_may_differ = op.operator_name().name.find("index") != std::string::npos;
  for (const IValue& value : arguments) {
    if (!value.isTensor() || !value.toTensor().defined() || indices_may_differ) continue;
    const at::Tensor& tensor = value.toTensor();
    TORCH_CHECK(tensor.is_cuda() || tensor.dim() == 0, "Expected all tensors to be on the same ",
                "device, but found at least two devices, cuda:0 and cpu! (in ", op.operator_name(),
                ")");
  }
}

// While it lives, the calls of an op are not looked at: they are its own.
struct Within {
  bool before = std::exchange(computing, true);
  ~Within() { computing = before; }
};

void compute(const OperatorHandle& op, Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Within within;
  if (op.operator_name().name == "aten::copy_") {
    const auto arguments = torch::jit::pop(*stack, 3);
    on_cpu(arguments[0].toTensor()).copy_(on_cpu(arguments[1].toTensor()));
    stack->push_back(arguments[0]);
  } else {
    at::native::cpu_fallback(op, stack);
    // It puts results where the first tensor is, which may be a scalar of the CPU: 1 - x.
    for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
      IValue& result = (*stack)[i];
      if (result.isTensor() && result.toTensor().defined() && result.toTensor().is_cpu()) {
        result = result.toTensor().to(kGpu);
      }
    }
  }
}

// What a replay computes anew goes where the capture put it.
void copy_to(const IValue& to, const IValue& from) {
  if (to.isTensor() && to.toTensor().defined()) {
    on_cpu(to.toTensor()).copy_(on_cpu(from.toTensor()));
  } else if (to.isTensorList()) {
    const auto kept = to.toTensorVector(), fresh = from.toTensorVector();
    for (size_t i = 0; i < kept.size(); ++i) copy_to(kept[i], fresh[i]);
  }
}

// Whether the op has yet to give a tensor that it writes its size.
bool sizes_something(const OperatorHandle& op, const Stack& arguments) {
  for (size_t k = 0; k < arguments.size(); ++k) {
    const c10::Argument& argument = op.schema().arguments()[k];
    if (argument.kwarg_only() && writes(argument) && arguments[k].isTensor() &&
        arguments[k].toTensor().numel() == 0) {
      return true;
    }
  }
  return false;
}

// Into the graph of the harness, in order with the kernels of fusedstep. What the op writes it
// writes at a replay; new results get their memory now, with values that no one may rely on.
void record(const OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  Stack results;
  if (sizes_something(op, arguments)) {
    compute(op, stack);
  } else if (writes_something(op)) {
    torch::jit::drop(*stack, count);
    for (size_t i = 0; i < op.schema().returns().size(); ++i) {
      const auto* const alias = op.schema().returns()[i].alias_info();
      for (size_t k = 0; k < count; ++k) {
        const c10::Argument& argument = op.schema().arguments()[k];
        if (writes(argument) && alias != nullptr && *argument.alias_info() == *alias) {
          stack->push_back(arguments[k]);
        }
      }
    }
  } else {
    compute(op, stack);
    results.assign(stack->end() - static_cast<std::ptrdiff_t>(op.schema().returns().size()),
                   stack->end());
  }
  const auto replay = [op, arguments, results] {
    Stack again = arguments;
    compute(op, &again);
    const Within within;
    const at::AutoDispatchBelowADInplaceOrView below;
    for (size_t i = 0; i < results.size(); ++i) copy_to(results[i], again[i]);
  };
  simt::device.graph.push_back({replay, 0});
}

void boxed(const OperatorHandle& op, Stack* stack) {
  if (concerns_only_memory(op)) {
    op.redispatchBoxed(kCpuKernels, stack);
    return;
  }
  if (computing) {
    compute(op, stack);
    return;
  }
  const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size()),
                        stack->end());
  check_generator(arguments);
  check_devices(op, arguments);
  if (waits(op, arguments)) {
    TORCH_CHECK(!simt::device.capturing, op.operator_name(),
                ": operation not permitted when stream is capturing");
    TORCH_CHECK(!waiting_is_an_error, op.operator_name(),
                ": called a synchronizing CUDA operation");
    ++simt::device.waits;
  }
  ++kernels;
  if (simt::device.capturing) {
    record(op, stack);
  } else {
    simt::device.finish(nullptr, true);
    compute(op, stack);
  }
}

// --- torch's other ways to a device ---

// One device, one stream: work runs in the order in which it was asked for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  Device exchangeDevice(Device device) const override {
    setDevice(device);
    return kGpu;
  }
  Device getDevice() const override { return kGpu; }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() <= 0, "CUDA error: invalid device ordinal");
  }
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override { return stream(); }
  c10::Stream getDefaultStream(Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
};

// Autograd asks torch's CUDA hooks which devices are in use. They are one object, made long before,
// that holds nothing but its table of functions.
struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
};

void take_hooks() {
  static const Hooks hooks;
  static_assert(sizeof(Hooks) == sizeof(void*));
  auto& used = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  std::memcpy(static_cast<void*>(&used), static_cast<const void*>(&hooks), sizeof(hooks));
}

void take_cuda() {
  take_hooks();
  static const c10::impl::DeviceGuardImplRegistrar guard(c10::kCUDA, new Guard);
  c10::SetAllocator(c10::kCUDA, &memory, /*priority=*/255);

  // torch warns of kernels that replace others.
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard quiet(&silent);
  static torch::Library library(torch::Library::IMPL, "aten", DispatchKey::CUDA, __FILE__,
                                __LINE__);
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  // These have one kernel for all devices, which branches inside.
  std::set<std::string> names = {"copy_", "ldexp.Tensor", "ldexp.out", "ldexp_"};
  for (const auto key : {DispatchKey::CPU, DispatchKey::CUDA}) {
    for (const auto& op : c10::Dispatcher::singleton().getRegistrationsForDispatchKey(key)) {
      if (op.getNamespace() != "aten") continue;
      const std::string overload = op.overload_name.empty() ? "" : "." + op.overload_name;
      names.insert(op.name.substr(std::string("aten::").size()) + overload);
    }
  }
  for (const auto* made : {"empty.memory_format", "empty_strided", "_copy_from_and_resize"}) {
    names.erase(made);
  }
  for (const auto& name : names) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&boxed>());
  }
}

at::Generator generator_for_cuda() {
  return generators.emplace_back(at::detail::createCPUGenerator());
}

// A captured graph: its work, and the memory that was allocated for it.
class Graph {
 public:
  void begin() {
    simt::device.graph.clear();
    simt::device.invalidated = false;
    simt::device.capturing = true;
    kept_by_capture = &memory_;
  }
  void end() {
    kept_by_capture = nullptr;
    simt::device.capturing = false;
    works_ = std::exchange(simt::device.graph, {});
    TORCH_CHECK(!std::exchange(simt::device.invalidated, false),
                "CUDA error: operation failed due to a previous error during capture");
  }
  void replay() const {
    for (const auto& work : works_) work.run();
  }

 private:
  std::vector<Block> memory_;
  std::vector<simt::CapturedKernel> works_;
};

}  // namespace

void bind_cuda_tensors(pybind11::module_& m) {
  m.def("take_cuda", &take_cuda);  // for the whole process and for good
  m.def("generator_for_cuda", &generator_for_cuda);
  m.def("waiting_is_an_error", [](bool error) { waiting_is_an_error = error; });
  m.def("capturing", [] { return simt::device.capturing; });
  m.def("waits", [] { return simt::device.waits; });
  m.def("wait", [] {
    ++simt::device.waits;
    simt::device.finish(nullptr, true);
  });
  m.def("torch_kernels", [] { return kernels.load(); });  // computed by torch's ops so far
  m.def("bytes", [] { return std::pair(bytes_now.load(), bytes_most.load()); });
  m.def("forget_most_bytes", [] { bytes_most = bytes_now.load(); });
  pybind11::class_<Graph>(m, "Graph")
      .def(pybind11::init<>())
      .def("begin", &Graph::begin)
      .def("end", &Graph::end)
      .def("replay", &Graph::replay);
}
