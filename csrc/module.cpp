// The Python module _C. The ops beside it reach Python through torch's dispatcher (ops.cpp); what
// is bound here takes no torch type, so that the module depends on no torch version.
#include <pybind11/pybind11.h>

#include "csrc/build_facts.h"
#include "csrc/tensor_table_module.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "fusedstep: op schemas and CPU kernels";
  m.def("build_facts", &build_facts, "What was built and with what: a dict of strings.");
  fusedstep::bind_tensor_table(m);
}
