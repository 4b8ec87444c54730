// The one list of all ops: their schemas, with every argument that is written marked.
#include <torch/csrc/stable/library.h>

// A step is `norm` (0-d float64) and then a rule of kernels/optim/rules, named by its file; `norm`,
// `grad_scale` and `found_inf` are read on the device. `arrays` holds what each parameter has
// beside its gradient, array_counts[i] of them for parameter i; `roles` says what each is for
// (kernels/optim/table.h). `groups` holds, group after group, a value for each of the rule's fields
// (fusedstep._C.rule_fields); lrs[i], a tensor, is the rate of group lr_groups[i]; `seed`, the bits
// of an unsigned integer, that of all stochastic rounding.
//
// The ops with a `table` are for eager mode, where lists of tensors are dear: `table` is the
// address of a fusedstep._C.TensorTable that remembers the parameters and their arrays. After a
// `table_refresh` that said true, `table_norm_` and `table_step_` write what the table lists;
// `param` is the first of those.
STABLE_TORCH_LIBRARY(fusedstep, m) {
  m.def("total_norm(Tensor[] tensors, float norm_type=2.0, Tensor? grad_scale=None) -> Tensor");
  m.def("clip_by_norm_(Tensor(a!)[] tensors, Tensor norm, float max_norm) -> ()");
  m.def(
      "step_(str rule, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] arrays, "
      "int[] roles, int[] array_counts, int[] group_sizes, float[] groups, int seed, "
      "Tensor[] lrs, int[] lr_groups, "
      "Tensor? norm=None, Tensor? grad_scale=None, Tensor? found_inf=None, float max_norm=-1.0, "
      "bool skip_nonfinite=False) -> ()");

  // float32 state to 8-bit codes (kernels/optim/quantize.h) and a scale for each block of them in
  // memory, and back; to the nearest code. On the CPU only: for checkpoints.
  m.def("encode_state(Tensor x, bool signed) -> (Tensor, Tensor)");
  m.def("decode_state(Tensor codes, Tensor scales) -> Tensor");

  m.def(
      "table_assign(int table, Tensor[] params, Tensor[] arrays, int[] roles, int[] array_counts, "
      "int[] group_sizes, int[] positions) -> ()");
  m.def("table_refresh(int table, Tensor[] grads, int[] missing) -> bool");
  m.def("table_norm_(int table, Tensor(a!) norm, float norm_type, Tensor? grad_scale) -> ()");
  m.def(
      "table_step_(int table, str rule, Tensor(a!) param, float[] groups, int seed, Tensor[] lrs, "
      "int[] lr_groups, Tensor(b!)? norm, float norm_type, Tensor? grad_scale, Tensor? found_inf, "
      "float max_norm, bool skip_nonfinite) -> ()");

  // Adds row order[p] of `rows` to sums[ids[p]], in the order of kernels/lm_head/segment_sum.h.
  // `ids` ascend. On a GPU neither they nor `order` are checked, which would wait for it.
  m.def("segment_sum_(Tensor(a!) sums, Tensor rows, Tensor order, Tensor ids) -> ()");

  // Adds rowsᵀ rows to `gram` [k, k], for rows [n, k], or to each of [b, k, k] for [b, n, k], as
  // kernels/linalg/gram.h says. Of what is above the diagonals only some is written.
  m.def("gram_(Tensor(a!) gram, Tensor rows) -> ()");

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

  // Of float64 matrices [b, k, k], on NVIDIA GPUs alone, by cuSOLVER and cuBLAS: L⁻¹ of G = L Lᵀ;
  // A = V λ Vᵀ of what A's lower triangle says, λ ascending; R = U σ Vᵀ for k <= 32, σ descending.
  // The last result, int32 [b], is 0 for each matrix that succeeded. No result is read on the host.
  // Products are torch's: its matmul is cublasDgemmStridedBatched already.
  m.def("inverse_of_cholesky_factor(Tensor G) -> (Tensor, Tensor)");
  m.def("eigh(Tensor A) -> (Tensor, Tensor, Tensor)");
  m.def("svd(Tensor R) -> (Tensor, Tensor, Tensor, Tensor)");

  // Of each G = XᵀX [k, k], X of `count` rows, and G⁻¹, which `exists` says are of use: whether
  // every singular value of X is proved to exceed max(atol, rtol * the largest). Returns a Verdict
  // of kernels/linalg/certificate.h, the rank and a lower bound on the smallest over the largest.
  m.def(
      "certify(Tensor gram, Tensor inverse, Tensor exists, Tensor atol, Tensor rtol, int count) -> "
      "(Tensor, Tensor, Tensor)");

  // Vectors [b, n, k] with each column divided by its value [b, k], or zero where the value's size
  // does not exceed max(atol, rtol * the largest); the rank; the smallest size kept over the
  // largest. gram_count > 0: the values are eigenvalues of Gram matrices of so many rows, whose
  // square roots are compared (kernels/linalg/truncate.h).
  m.def(
      "truncate_scale(Tensor values, Tensor vectors, Tensor atol, Tensor rtol, int gram_count=0) "
      "-> (Tensor, Tensor, Tensor)");

  // The pseudo-inverses of A [b, m, n], m and n at most 32, contiguous float32 or float64, by
  // kernels/linalg/tiny_pinv.h; atol, rtol [b] float64. Returns P [b, n, m] and of each matrix the
  // rank (int64), the code of fusedstep.pinv (int32) and rcond (float64).
  m.def(
      "pinv_tiny(Tensor A, Tensor atol, Tensor rtol, bool jacobi) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}
