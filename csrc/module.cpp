// The Python module _C. The ops beside it reach Python through torch's dispatcher (ops.cpp); what
// is bound here takes no torch type, so that the module depends on no torch version.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/build_facts.h"
#include "csrc/tensor_table_module.h"
#include "kernels/optim/passes_cpu.h"

namespace {

std::vector<std::string_view> rule_fields(const std::string& rule) {
  const auto* entry = fusedstep::find_rule<fusedstep::cpu::StepChunks>(rule);
  if (entry == nullptr) {
    throw pybind11::value_error("rule_fields: rule must be one of kernels/optim/rules, got " +
                                rule);
  }
  return entry->fields;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fusedstep: op schemas and CPU kernels";
  m.def("build_facts", &build_facts, "What was built and with what: a dict of strings.");
  m.def("rule_fields", &rule_fields, pybind11::arg("rule"),
        "The names of the values that a parameter group of a rule has, in the ops' order.");
  fusedstep::bind_tensor_table(m);
}
