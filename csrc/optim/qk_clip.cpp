// The op qk_clip_: the heads of query and key weights scaled where their logits are too large.
#include <torch/csrc/stable/library.h>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

constexpr const char* kFunction = "qk_clip_";

Row row_of(const Tensors& weights, size_t i) {
  const Arg arg(kFunction, "weights", weights[i], i);
  Row row = {};
  row.param_dtype = row.grad_dtype = arg.floating();
  arg.must(weights[i].dim() > 0, "have rows").gapless().on_device_of(weights[0]);
  row.param = weights[i].data_ptr();
  row.size = weights[i].numel();
  return row;
}

QkHeads heads_of(const Tensor& weight, const Tensor& max_logits, int64_t head_dim,
                 int64_t first_row, size_t i) {
  const int64_t rows = weight.size(0);
  Arg(kFunction, "max_logits", max_logits, i)
      .is({ScalarType::Float})
      .dims(1)
      .contiguous()
      .on_device_of(weight);
  Arg(kFunction, "head_dims", head_dim, i).must(head_dim > 0, "be at least 1");
  Arg(kFunction, "first_rows", first_row, i)
      .must(first_row >= 0 && first_row + rows <= head_dim * max_logits.numel(),
            "be the first of rows that have heads");
  // One row alone may have any stride, but then all elements are in it.
  return {data_of<float>(max_logits), head_dim, first_row, rows,
          rows > 1 ? weight.stride(0) : weight.numel()};
}

void qk_clip_(const Tensors& weights, const Tensors& max_logits,
              const std::vector<int64_t>& head_dims, const std::vector<int64_t>& first_rows,
              double threshold) {
  Arg(kFunction, "weights", weights.size()).must(!weights.empty(), "not be empty");
  check_length(kFunction, "max_logits", max_logits.size(), weights.size());
  check_length(kFunction, "head_dims", head_dims.size(), weights.size());
  check_length(kFunction, "first_rows", first_rows.size(), weights.size());
  Arg(kFunction, "threshold", threshold).must(threshold > 0, "be above 0");
  std::vector<Row> rows;
  std::vector<QkHeads> listed;
  for (size_t i = 0; i < weights.size(); ++i) {
    rows.push_back(row_of(weights, i));
    listed.push_back(heads_of(weights[i], max_logits[i], head_dims[i], first_rows[i], i));
  }
  const TableData table = TableData::in_place(rows);
  std::vector<QkHeads> heads;
  for (const int32_t i : table.layout.order) {
    heads.push_back(listed[i]);
  }
  device_of(weights[0]).qk_clip({table, heads, threshold, weights[0].get_device()});
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // kernels/optim/qk_clip.h. Weight i is some rows, from first_rows[i] on, of a matrix with
  // head_dims[i] rows for each of the heads whose largest logits max_logits[i] has.
  m.def(
      "qk_clip_(Tensor(a!)[] weights, Tensor[] max_logits, int[] head_dims, int[] first_rows, "
      "float threshold) -> ()");
}

FUSEDSTEP_IMPL(m) { m.impl("qk_clip_", TORCH_BOX(&fusedstep::qk_clip_)); }
