// Sums of rows by id as an op, for either device: arguments checked, kernels run.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "csrc/checks.h"
#include "csrc/empty.h"
#include "kernels/lm_head/segment_sum.h"

namespace fusedstep {

inline void require_indices(const char* function, const char* argument, const Tensor& tensor,
                            int64_t count, const Tensor& reference) {
  require(is_vector(tensor, aoti_torch_dtype_int64()), function, argument, -1,
          "be contiguous int64 of one dimension", "something else");
  require(tensor.numel() == count, function, argument, -1, "have as many elements as ids",
          tensor.numel());
  require_same_device(function, argument, -1, tensor, reference);
}

// `Kernels::run(segments, device)` does both passes.
template <typename Kernels>
struct SegmentSumOps {
  static void segment_sum_(const Tensor& sums, const Tensor& rows, const Tensor& order,
                           const Tensor& ids) {
    constexpr const char* kFunction = "segment_sum_";
    require(dtype_of(sums) == Dtype::kFloat64 && is_strided(sums) && sums.dim() == 2 &&
                is_contiguous(sums),
            kFunction, "sums", -1, "be contiguous float64 of two dimensions", "something else");
    const Dtype dtype = require_rows(kFunction, rows, sums.size(1), "be as wide as sums");
    require_same_device(kFunction, "rows", -1, rows, sums);
    require_indices(kFunction, "order", order, ids.numel(), sums);
    require_indices(kFunction, "ids", ids, ids.numel(), sums);
    if (ids.numel() == 0 || sums.size(1) == 0) {
      return;
    }
    const int64_t pieces = pieces_of(ids.numel());
    const Tensor heads = empty_beside(sums, {pieces, sums.size(1)});
    const Segments segments{.rows = rows.data_ptr(),
                            .dtype = dtype,
                            .stride = rows.stride(0),
                            .width = rows.size(1),
                            .order = static_cast<const int64_t*>(order.data_ptr()),
                            .ids = static_cast<const int64_t*>(ids.data_ptr()),
                            .count = ids.numel(),
                            .sums = static_cast<double*>(sums.data_ptr()),
                            .heads = static_cast<double*>(heads.data_ptr())};
    Kernels::require_in_range(kFunction, segments, rows.size(0), sums.size(0));
    Kernels::run(segments, sums.get_device());
  }
};

}  // namespace fusedstep
