// The ops softmax_losses, softmax_directions_ and root_steps_: loss and gradient of rows of logits.
#include <torch/csrc/stable/library.h>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

void check_logits(const char* function, const Tensor& logits, bool writes) {
  Arg(function, "logits", logits)
      .is({ScalarType::Float, ScalarType::Double})
      .dims(2)
      .must(has_dense_rows(logits), "have neighbouring elements in memory along a row")
      .must(!writes || logits.size(0) < 2 || logits.stride(0) >= logits.size(1),
            "have rows that share no memory")
      .must(logits.size(0) == 0 || logits.size(1) > 0, "have a class");
}

// One value for each row of logits.
void check_vector(const char* function, const char* argument, const Tensor& tensor,
                  ScalarType dtype, const Tensor& logits) {
  Arg(function, argument, tensor)
      .is({dtype})
      .contiguous()
      .shape({logits.size(0)})
      .on_device_of(logits);
}

// Returns the rows' results, [count, 4] float64.
Tensor run(const char* function, const Tensor& logits, const Tensor& tokens, bool writes,
           const RootStep& root = {}) {
  check_vector(function, "tokens", tokens, ScalarType::Long, logits);
  const int64_t count = logits.size(0);
  static_assert(sizeof(SoftmaxRow) == 4 * sizeof(double));
  const Tensor rows = empty_on(logits, {count, 4});
  if (count == 0) {
    return rows;
  }
  Workspace workspace(logits);
  Softmax softmax{.logits = logits.data_ptr(),
                  .dtype = *dtype_of(logits),
                  .stride = logits.stride(0),
                  .classes = logits.size(1),
                  .count = count,
                  .tokens = data_of<int64_t>(tokens),
                  .chunks = nullptr,
                  .rows = data_of<SoftmaxRow>(rows),
                  .writes = writes,
                  .root = root};
  softmax.chunks = workspace.empty<SoftmaxChunk>(count * chunks_of_row(softmax));
  for (int64_t n = 0; logits.is_cpu() && n < count; ++n) {  // on a GPU the caller must
    Arg(function, "tokens", softmax.tokens[n], n)
        .must(softmax.tokens[n] >= 0 && softmax.tokens[n] < softmax.classes, "be a class's number");
  }
  device_of(logits).softmax(softmax, workspace);
  return rows;
}

Tensor softmax_losses(const Tensor& logits, const Tensor& tokens) {
  check_logits("softmax_losses", logits, false);
  return run("softmax_losses", logits, tokens, false);
}

Tensor softmax_directions_(const Tensor& logits, const Tensor& tokens) {
  check_logits("softmax_directions_", logits, true);
  return run("softmax_directions_", logits, tokens, true);
}

Tensor root_steps_(const Tensor& logits, const Tensor& tokens, const Tensor& squares,
                   const std::optional<Tensor>& gram, double loss_constant, bool uphill) {
  constexpr const char* kFunction = "root_steps_";
  check_logits(kFunction, logits, true);
  check_vector(kFunction, "squares", squares, ScalarType::Double, logits);
  RootStep root{.squares = data_of<double>(squares),
                .loss_constant = loss_constant,
                .uphill = uphill,
                .gram = nullptr,
                .gram_stride = 0};
  if (gram.has_value()) {
    Arg(kFunction, "gram", *gram)
        .is({logits.scalar_type()})
        .shape({logits.size(0), logits.size(0)})
        .must(has_dense_rows(*gram), "have neighbouring elements in memory along a row")
        .on_device_of(logits);
    root.gram = gram->data_ptr();
    root.gram_stride = gram->stride(0);
  }
  return run(kFunction, logits, tokens, true, root);
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Of each row of logits, float32 or float64, with its token: loss, 1 - p_y, |direction|² and the
  // scale of what was written, [rows, 4] float64 (kernels/lm_head/softmax.h). Written over the
  // logits are directions, or the steps to the roots of the losses minus a constant
  // (kernels/lm_head/root_step.h): of each row by itself, or with `gram` of each after those before
  // it. On a GPU tokens are not checked, which would wait for it.
  m.def("softmax_losses(Tensor logits, Tensor tokens) -> Tensor");
  m.def("softmax_directions_(Tensor(a!) logits, Tensor tokens) -> Tensor");
  m.def(
      "root_steps_(Tensor(a!) logits, Tensor tokens, Tensor squares, Tensor? gram, "
      "float loss_constant, bool uphill) -> Tensor");
}

FUSEDSTEP_IMPL(m) {
  m.impl("softmax_losses", TORCH_BOX(&fusedstep::softmax_losses));
  m.impl("softmax_directions_", TORCH_BOX(&fusedstep::softmax_directions_));
  m.impl("root_steps_", TORCH_BOX(&fusedstep::root_steps_));
}
