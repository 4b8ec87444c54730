// The Python module _C. The ops reach Python through torch's dispatcher instead (one file each);
// the functions bound here take no torch type, so the module depends on no torch version.
#include "csrc/module.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/build_facts.h"
#include "csrc/device.h"
#include "kernels/linalg/certificate.h"
#include "kernels/linalg/tiny_problem.h"
#include "kernels/optim/quantize.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/table.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

std::vector<std::string_view> rule_fields(const std::string& rule) {
  const auto* entry = fusedstep::find_rule<fusedstep::cpu::StepChunks>(rule);
  if (entry == nullptr) {
    throw py::value_error("rule_fields: rule must be one of kernels/optim/rules, got " + rule);
  }
  return entry->fields;
}

// What Python and the kernels must agree on.
void bind_constants(py::module_& m) {
  using fusedstep::Verdict;
  namespace tiny = fusedstep::tiny;
  m.attr("ROLES") =
      py::dict("STATE"_a = int{fusedstep::kState}, "SCALE"_a = int{fusedstep::kScale},
               "MASTER"_a = int{fusedstep::kMaster}, "AVERAGE"_a = int{fusedstep::kAverage},
               "STEP"_a = int{fusedstep::kStep});
  m.attr("BLOCK") = fusedstep::kBlock;
  m.attr("CHUNK_SIZE") = fusedstep::kChunkSize;
  m.attr("VERDICTS") = py::dict("CERTIFIED"_a = static_cast<int>(Verdict::kCertified),
                                "NOT_FINITE"_a = static_cast<int>(Verdict::kNotFinite),
                                "OPEN"_a = static_cast<int>(Verdict::kOpen),
                                "BLURRED"_a = static_cast<int>(Verdict::kBlurred));
  m.attr("TINY") = tiny::kLargest;
  m.attr("SVD_COLUMNS") = fusedstep::kSvdColumns;
  m.attr("PINV_CODES") = py::dict("DONE"_a = static_cast<int>(tiny::kDone),
                                  "NOT_FINITE"_a = static_cast<int>(tiny::kNotFinite),
                                  "FAILED"_a = static_cast<int>(tiny::kFailed));
  m.def("gram_error", &fusedstep::gram_error, "rows"_a, "columns"_a,
        "How far eigenvalues of a computed Gram matrix may be off, relative to the largest.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fusedstep: op schemas and CPU kernels";
  m.def("build_facts", &build_facts, "What was built and with what: a dict of strings.");
  m.attr("DEVICE") = py::capsule(&fusedstep::kCpuDevice, fusedstep::kDeviceCapsule);
  fusedstep::bind_device(m);
  fusedstep::bind_plain_list(m);
  fusedstep::bind_step_plan(m);
  fusedstep::bind_tensor_table(m);
  m.def("rule_fields", &rule_fields, "rule"_a,
        "The names of the values that a parameter group of a rule has, in the ops' order.");
  bind_constants(m);
}
