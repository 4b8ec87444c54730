// The op segment_sum_: sums of rows by id.
#include <torch/csrc/stable/library.h>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

void check_in_range(const char* function, const Segments& s, int64_t num_rows, int64_t num_ids) {
  for (int64_t p = 0; p < s.count; ++p) {
    Arg(function, "order", s.order[p], p)
        .must(s.order[p] >= 0 && s.order[p] < num_rows, "be a row's number");
    Arg(function, "ids", s.ids[p], p)
        .must(s.ids[p] >= (p > 0 ? s.ids[p - 1] : 0) && s.ids[p] < num_ids,
              "ascend from 0 or more to less than the number of sums");
  }
}

void segment_sum_(const Tensor& sums, const Tensor& rows, const Tensor& order, const Tensor& ids) {
  constexpr const char* kFunction = "segment_sum_";
  Arg(kFunction, "sums", sums).is({ScalarType::Double}).dims(2).contiguous();
  const Arg rows_arg(kFunction, "rows", rows);
  const Dtype dtype = rows_arg.floating();
  rows_arg.dims(2)
      .must(rows.size(1) == sums.size(1), "be as wide as sums")
      .must(has_dense_rows(rows), "have neighbouring elements in memory along a row")
      .on_device_of(sums);
  for (const auto& [argument, tensor] : {std::pair("order", &order), std::pair("ids", &ids)}) {
    Arg(kFunction, argument, *tensor)
        .is({ScalarType::Long})
        .dims(1)
        .contiguous()
        .must(tensor->numel() == ids.numel(), "have as many elements as ids")
        .on_device_of(sums);
  }
  if (ids.numel() == 0 || sums.size(1) == 0) {
    return;
  }
  Workspace workspace(sums);
  const Segments segments{
      .rows = rows.data_ptr(),
      .dtype = dtype,
      .stride = rows.stride(0),
      .width = rows.size(1),
      .order = data_of<int64_t>(order),
      .ids = data_of<int64_t>(ids),
      .count = ids.numel(),
      .sums = data_of<double>(sums),
      .heads = workspace.empty<double>(pieces_of(ids.numel()) * sums.size(1)),
  };
  if (sums.is_cpu()) {  // on a GPU the caller guarantees them, as LeastSquares does
    check_in_range(kFunction, segments, rows.size(0), sums.size(0));
  }
  device_of(sums).segment_sum(segments, workspace);
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Adds row order[p] of `rows` to sums[ids[p]], in the order of kernels/lm_head/segment_sum.h.
  // `ids` ascend. On a GPU neither they nor `order` are checked, which would wait for it.
  m.def("segment_sum_(Tensor(a!) sums, Tensor rows, Tensor order, Tensor ids) -> ()");
}

FUSEDSTEP_IMPL(m) { m.impl("segment_sum_", TORCH_BOX(&fusedstep::segment_sum_)); }
