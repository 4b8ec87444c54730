// The Python module _C_cuda: the functions that the ops of _C call for CUDA tensors. The loader
// (python/fusedstep/build.py) compares the facts, to refuse a module left over from another build,
// and hands the functions over to _C.
#include <pybind11/pybind11.h>

#include <string>

#include "csrc/build_facts.h"
#include "csrc/cuda/solver_library.h"
#include "csrc/device.h"

namespace {

std::string solver_library() {
  const auto& library = fusedstep::cuda::solver_library();
  int version = 0;
  fusedstep::cuda::check(library.cusolverGetVersion(&version), "cusolverGetVersion");
  return std::to_string(version) + " " + library.path;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "fusedstep: CUDA kernels";
  m.def("build_facts", &build_facts, "What was built and with what: a dict of strings.");
  m.attr("DEVICE") = pybind11::capsule(&fusedstep::kCudaDevice, fusedstep::kDeviceCapsule);
  m.def("solver_library", &solver_library,
        "Opens cuBLAS and cuSOLVER, if no op has yet, and returns the version and path of the "
        "latter. RuntimeError, one sentence, where one is missing.");
}
