// The Python module _C_cuda. Importing it registers the CUDA implementations of the ops that _C
// declares; the loader compares the facts to refuse a module left over from another build.
#include <pybind11/pybind11.h>

#include <string>

#include "csrc/build_facts.h"
#include "csrc/cuda/solver_library.h"

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
  m.def("solver_library", &solver_library,
        "Opens cuBLAS and cuSOLVER, if no op has yet, and returns the version and path of the "
        "latter. RuntimeError, one sentence, where one is missing.");
}
