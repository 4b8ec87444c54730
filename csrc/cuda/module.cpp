// The Python module _C_cuda. Importing it registers the CUDA implementations of the ops that _C
// declares; the loader compares the facts to refuse a module left over from another build.
#include <pybind11/pybind11.h>

#include "csrc/build_facts.h"

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "fusedstep: CUDA kernels";
  m.def("build_facts", &build_facts, "What was built and with what: a dict of strings.");
}
