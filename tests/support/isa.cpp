// The CPU kernels behind a C interface: compiled for one instruction set at a time by test_isa.py.
#include <vector>

#include "kernels/linalg/tiny_pinv.h"
#include "kernels/lm_head/softmax.h"
#include "kernels/optim/norm.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/rules/adam.h"
#include "kernels/optim/table.h"

namespace {

using namespace fusedstep;

// A table of one tensor.
struct Single {
  Layout layout;
  void* grad;
  GroupOf<adam::Rule> group;
  Table table() const {
    return {layout.rows.data(), &grad, layout.row_of_chunk.data(), &group, layout.num_chunks()};
  }
};

Single single(void* param, void* grad, void* const* states, float* step, int64_t size,
              int param_dtype, int grad_dtype, const double* values) {
  Row row = {};
  row.param = param;
  row.size = size;
  row.param_dtype = static_cast<Dtype>(param_dtype);
  row.grad_dtype = static_cast<Dtype>(grad_dtype);
  for (int k = 0; k < 3; ++k) {
    row.arrays[kState + k] = states[k];
    row.dtypes[kState + k] = compute_dtype(row.param_dtype);
  }
  row.arrays[kStep] = step;
  row.dtypes[kStep] = Dtype::kFloat32;
  GroupOf<adam::Rule> group;
  make_group<adam::Rule>(&group, values, nullptr, 0);
  return {make_layout({row}), grad, group};
}

}  // namespace

// `values`: of the group's fields, in their order. Returns the norm.
extern "C" double clip_and_adam(void* param, void* grad, void* const* states, float* step,
                                int64_t size, int param_dtype, int grad_dtype, int norm_type,
                                const double* values, double max_norm) {
  const Single tensor = single(param, grad, states, step, size, param_dtype, grad_dtype, values);
  const Table table = tensor.table();
  const Norm kind = static_cast<Norm>(norm_type);
  std::vector<double> partials(table.num_chunks);
  cpu::norm_chunks(table, kind, 0, table.num_chunks, partials.data());
  const double norm = cpu::fold_partials(kind, partials.data(), table.num_chunks, nullptr);
  const Clip clip{&norm, nullptr, nullptr, max_norm, false};
  const auto& adam = *find_rule<cpu::StepChunks>("adam");
  adam.step(table, clip, {0}, {table.num_chunks});
  cpu::advance_steps(table, 1, adam.group_bytes, clip);
  return norm;
}

// Directions over `count` rows of logits; `numbers` are four doubles a row.
extern "C" void softmax_directions(void* logits, int dtype, int64_t count, int64_t classes,
                                   const int64_t* tokens, void* numbers) {
  Softmax softmax{.logits = logits,
                  .dtype = static_cast<Dtype>(dtype),
                  .stride = classes,
                  .classes = classes,
                  .count = count,
                  .tokens = tokens,
                  .chunks = nullptr,
                  .rows = static_cast<SoftmaxRow*>(numbers),
                  .writes = true,
                  .root = {}};
  const int64_t chunks = chunks_of_row(softmax);
  std::vector<SoftmaxChunk> sums(count * chunks);
  softmax.chunks = sums.data();
  for (int64_t row = 0; row < count; ++row) {
    cpu::sum_chunks(softmax, row, 0, chunks);
    cpu::fold_row(softmax, row);
    cpu::scale_chunks(softmax, row, 0, chunks);
  }
}

// Of `count` matrices with one pair of tolerances; `rank` int64, `code` int32, `rcond` float64.
extern "C" void tiny_pinv(const void* A, int dtype, int rows, int columns, int64_t count,
                          const double* tolerances, void* P, int64_t* rank, int32_t* code,
                          double* rcond) {
  cpu::tiny_pinv({.A = A,
                  .dtype = static_cast<Dtype>(dtype),
                  .rows = rows,
                  .columns = columns,
                  .count = count,
                  .atol = {.all = tolerances[0]},
                  .rtol = {.all = tolerances[1]},
                  .jacobi = false,
                  .result = P,
                  .rank = rank,
                  .code = code,
                  .rcond = rcond},
                 0, count);
}
