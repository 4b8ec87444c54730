// Loss and gradient of rows of logits as ops, for either device: arguments checked, kernels run.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "csrc/checks.h"
#include "csrc/empty.h"
#include "kernels/lm_head/softmax.h"

namespace fusedstep {

// `Kernels::require_in_range(function, softmax)` looks at the tokens, if it may;
// `Kernels::run(softmax, logits)` does the work. All return the rows' results, [count, 4] float64.
template <typename Kernels>
struct SoftmaxOps {
  static Tensor softmax_losses(const Tensor& logits, const Tensor& tokens) {
    require_logits("softmax_losses", logits, false);
    return run("softmax_losses", logits, tokens, false, {});
  }

  static Tensor softmax_directions_(const Tensor& logits, const Tensor& tokens) {
    require_logits("softmax_directions_", logits, true);
    return run("softmax_directions_", logits, tokens, true, {});
  }

  static Tensor root_steps_(const Tensor& logits, const Tensor& tokens, const Tensor& squares,
                            const std::optional<Tensor>& gram, double loss_constant, bool uphill) {
    constexpr const char* kFunction = "root_steps_";
    require_logits(kFunction, logits, true);
    require_vector(kFunction, "squares", squares, aoti_torch_dtype_float64(), logits);
    RootStep root{.squares = static_cast<const double*>(squares.data_ptr()),
                  .loss_constant = loss_constant,
                  .uphill = uphill,
                  .gram = nullptr,
                  .gram_stride = 0};
    if (gram.has_value()) {
      require(dtype_of(*gram) == dtype_of(logits) && is_matrix(*gram) &&
                  gram->size(0) == logits.size(0) && gram->size(1) == logits.size(0),
              kFunction, "gram", -1, "be of the logits' dtype, a row and a column for each of them",
              "something else");
      require_same_device(kFunction, "gram", -1, *gram, logits);
      root.gram = gram->data_ptr();
      root.gram_stride = gram->stride(0);
    }
    return run(kFunction, logits, tokens, true, root);
  }

 private:
  // Elements of a row are neighbours in memory.
  static bool is_matrix(const Tensor& tensor) {
    return is_strided(tensor) && tensor.dim() == 2 && (tensor.size(1) < 2 || tensor.stride(1) == 1);
  }

  static void require_logits(const char* function, const Tensor& logits, bool writes) {
    const auto dtype = dtype_of(logits);
    require((dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64) && is_matrix(logits), function,
            "logits", -1, "be float32 or float64 rows whose elements are neighbours in memory",
            "something else");
    require(!writes || logits.size(0) < 2 || logits.stride(0) >= logits.size(1), function, "logits",
            -1, "have rows that share no memory", logits.stride(0));
    require(logits.size(0) == 0 || logits.size(1) > 0, function, "logits", -1, "have a class",
            "none");
  }

  static void require_vector(const char* function, const char* argument, const Tensor& tensor,
                             int32_t dtype, const Tensor& logits) {
    require(is_vector(tensor, dtype) && tensor.numel() == logits.size(0), function, argument, -1,
            dtype == aoti_torch_dtype_int64() ? "be contiguous int64, one for each row of logits"
                                              : "be contiguous float64, one for each row of logits",
            "something else");
    require_same_device(function, argument, -1, tensor, logits);
  }

  static Tensor run(const char* function, const Tensor& logits, const Tensor& tokens, bool writes,
                    const RootStep& root) {
    require_vector(function, "tokens", tokens, aoti_torch_dtype_int64(), logits);
    const int64_t count = logits.size(0);
    Softmax softmax{.logits = logits.data_ptr(),
                    .dtype = *dtype_of(logits),
                    .stride = logits.stride(0),
                    .classes = logits.size(1),
                    .count = count,
                    .tokens = static_cast<const int64_t*>(tokens.data_ptr()),
                    .chunks = nullptr,
                    .rows = nullptr,
                    .writes = writes,
                    .root = root};
    static_assert(sizeof(SoftmaxRow) == 4 * sizeof(double));
    static_assert(sizeof(SoftmaxChunk) == 4 * sizeof(double));
    const Tensor rows = empty_beside(logits, {count, 4});
    if (count > 0) {
      const Tensor chunks = empty_beside(logits, {count * chunks_of_row(softmax), 4});
      softmax.rows = static_cast<SoftmaxRow*>(rows.data_ptr());
      softmax.chunks = static_cast<SoftmaxChunk*>(chunks.data_ptr());
      Kernels::require_in_range(function, softmax);
      Kernels::run(softmax, logits);
    }
    return rows;
  }
};

}  // namespace fusedstep
