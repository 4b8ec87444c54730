// The CPU kernels behind a C interface: compiled for one instruction set at a time by test_isa.py.
#include <vector>

#include "kernels/common/layout.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rules.h"
#include "kernels/rules/adam.h"

namespace {

using namespace fusedstep;

// A table of one tensor.
struct Single {
  Layout layout;
  void* grad;
  AdamGroup group;
  Table table() const {
    return {layout.rows.data(), &grad, layout.row_of_chunk.data(), &group, layout.num_chunks()};
  }
};

Single single(void* param, void* grad, void* const* states, float* step, int64_t size,
              int param_dtype, int grad_dtype, const double* f) {
  const Row row{.param = param,
                .states = {states[0], states[1], states[2]},
                .step = step,
                .size = size,
                .first_chunk = 0,
                .first_partial = 0,
                .group = 0,
                .param_dtype = static_cast<Dtype>(param_dtype),
                .grad_dtype = static_cast<Dtype>(grad_dtype)};
  const AdamGroup group{.lr_tensor = nullptr,
                        .lr = f[0],
                        .beta1 = f[1],
                        .beta2 = f[2],
                        .eps = f[3],
                        .weight_decay = f[4],
                        .decoupled = 1,
                        .maximize = 0,
                        .amsgrad = f[5] != 0};
  return {make_layout({row}), grad, group};
}

}  // namespace

// `options`: lr, beta1, beta2, eps, weight_decay, amsgrad, max_norm. Returns the norm.
extern "C" double clip_and_adam(void* param, void* grad, void* const* states, float* step,
                                int64_t size, int param_dtype, int grad_dtype, int norm_type,
                                const double* options) {
  const Single tensor = single(param, grad, states, step, size, param_dtype, grad_dtype, options);
  const Table table = tensor.table();
  const Norm kind = static_cast<Norm>(norm_type);
  std::vector<double> partials(table.num_chunks);
  cpu::norm_chunks(table, kind, 0, table.num_chunks, partials.data());
  const double norm = cpu::fold_partials(kind, partials.data(), table.num_chunks, nullptr);
  const Clip clip{&norm, nullptr, nullptr, options[6], false};
  cpu::adam_chunks(table, clip, {0}, {table.num_chunks});
  cpu::advance_steps(table, 1, clip);
  return norm;
}
