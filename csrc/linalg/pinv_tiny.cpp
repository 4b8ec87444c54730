// The ops pinv_tiny and lstsq_tiny: the pseudo-inverses of matrices of at most 32 rows and columns,
// and their products with right-hand sides; on a CPU pinv_small and lstsq_small of larger ones.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

// The sizes of A [*, m, n], with the last two replaced.
std::vector<int64_t> sizes_of(const Tensor& A, std::initializer_list<int64_t> last) {
  const auto sizes = geometry_of(A).sizes;
  std::vector<int64_t> changed(sizes.begin(), sizes.end() - 2);
  changed.insert(changed.end(), last);
  return changed;
}

// A [*, m, n], as the kernels take it.
void check_matrices(const char* function, const Tensor& A) {
  Arg(function, "A", A)
      .is({ScalarType::Float, ScalarType::Double})
      .must(A.dim() >= 2, "have two or more dimensions")
      .contiguous();
}

// B [*, m, c] for it.
void check_right_sides(const char* function, const Tensor& A, const Tensor& B) {
  const int64_t dim = A.dim();
  const Arg arg(function, "B", B);
  arg.is({A.scalar_type()}).dims(dim).contiguous();
  arg.must(
         std::ranges::equal(geometry_of(B).sizes, sizes_of(A, {A.size(dim - 2), B.size(dim - 1)})),
         "have A's sizes, but for the last")
      .on_device_of(A);
}

// Also as small as the kernel of tiny matrices takes them.
void check_tiny(const char* function, const Tensor& A, const Tensor* B = nullptr) {
  check_matrices(function, A);
  const auto most = std::to_string(tiny::kLargest);
  const int64_t dim = A.dim();
  Arg(function, "A", A)
      .must(std::max(A.size(dim - 2), A.size(dim - 1)) <= tiny::kLargest,
            "have at most " + most + " rows and columns");
  if (B != nullptr) {
    check_right_sides(function, A, *B);
    Arg(function, "B", *B)
        .must(B->size(dim - 1) <= tiny::kLargest, "have at most " + most + " columns");
  }
}

// Also no larger than the kernel of small matrices takes them: it counts elements in int.
void check_small(const char* function, const Tensor& A, const Tensor* B = nullptr) {
  constexpr int64_t kMost = 1 << 30;
  check_matrices(function, A);
  const int64_t dim = A.dim(), rows = A.size(dim - 2), columns = A.size(dim - 1);
  const auto fits = [](int64_t m, int64_t n) { return n == 0 || m <= kMost / n; };
  Arg(function, "A", A)
      .must(fits(rows, columns), "have at most " + std::to_string(kMost) + " elements a matrix");
  if (B != nullptr) {
    check_right_sides(function, A, *B);
    Arg(function, "B", *B)
        .must(fits(std::max(rows, columns), B->size(dim - 1)), "have fewer columns");
  }
}

void check_tolerance(const char* function, const char* argument, double tolerance) {
  Arg(function, argument, tolerance).must(tolerance >= 0, "be 0 or more");
}

TinyPinv problem_of(const Tensor& A, Tolerance atol, Tolerance rtol, bool jacobi,
                    const Tensor& result) {
  const int64_t rows = A.size(A.dim() - 2), columns = A.size(A.dim() - 1);
  return {.A = A.data_ptr(),
          .dtype = *dtype_of(A),
          .rows = static_cast<int>(rows),
          .columns = static_cast<int>(columns),
          .count = A.numel() / (rows * columns),
          .atol = atol,
          .rtol = rtol,
          .jacobi = jacobi,
          .result = result.data_ptr()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pinv_tiny(const Tensor& A, const Tensor& atol,
                                                     const Tensor& rtol, bool jacobi) {
  constexpr const char* kFunction = "pinv_tiny";
  check_tiny(kFunction, A);
  Arg(kFunction, "A", A).dims(3);
  const int64_t count = A.size(0);
  for (const auto& [argument, tensor] : {std::pair("atol", &atol), std::pair("rtol", &rtol)}) {
    Arg(kFunction, argument, *tensor).is({ScalarType::Double}).shape({count}).on_device_of(A);
  }
  const Tensor P = empty_on(A, {count, A.size(2), A.size(1)}, A.scalar_type());
  Tensor rank = empty_on(A, {count}, ScalarType::Long);
  Tensor code = empty_on(A, {count}, ScalarType::Int);
  Tensor rcond = empty_on(A, {count});
  if (A.numel() == 0) {
    for (Tensor* facts : {&rank, &code, &rcond}) {
      torch::stable::zero_(*facts);
    }
    return {P, rank, code, rcond};
  }
  const auto of_each = [](const Tensor& tolerance) {
    return Tolerance{.each = data_of<double>(tolerance), .stride = tolerance.stride(0)};
  };
  TinyPinv problem = problem_of(A, of_each(atol), of_each(rtol), jacobi, P);
  problem.rank = data_of<int64_t>(rank);
  problem.code = data_of<int32_t>(code);
  problem.rcond = data_of<double>(rcond);
  Workspace workspace(A);
  device_of(A).tiny_pinv(problem, workspace);
  return {P, rank, code, rcond};
}

Tensor pinv_tiny_alike(const Tensor& A, double atol, double rtol, bool jacobi) {
  constexpr const char* kFunction = "pinv_tiny";
  check_tiny(kFunction, A);
  check_tolerance(kFunction, "atol", atol);
  check_tolerance(kFunction, "rtol", rtol);
  const int64_t dim = A.dim();
  const Tensor P = empty_on(A, sizes_of(A, {A.size(dim - 1), A.size(dim - 2)}), A.scalar_type());
  if (A.numel() > 0) {
    Workspace workspace(A);
    device_of(A).tiny_pinv(problem_of(A, {atol}, {rtol}, jacobi, P), workspace);
  }
  return P;
}

Tensor lstsq_tiny(const Tensor& A, const Tensor& B, double atol, double rtol, bool jacobi) {
  constexpr const char* kFunction = "lstsq_tiny";
  check_tiny(kFunction, A, &B);
  const int64_t dim = A.dim(), right_sides = B.size(B.dim() - 1);
  check_tolerance(kFunction, "atol", atol);
  check_tolerance(kFunction, "rtol", rtol);
  Tensor X = empty_on(A, sizes_of(A, {A.size(dim - 1), right_sides}), A.scalar_type());
  if (A.numel() == 0) {
    torch::stable::zero_(X);
  } else if (B.numel() > 0) {
    TinyPinv problem = problem_of(A, {atol}, {rtol}, jacobi, X);
    problem.B = B.data_ptr();
    problem.right_sides = static_cast<int>(right_sides);
    Workspace workspace(A);
    device_of(A).tiny_pinv(problem, workspace);
  }
  return X;
}

// The function of the device that has it.
auto* require_small(const char* op, const Tensor& A) {
  auto* const run = device_of(A).small_pinv;
  if (run == nullptr) {
    throw std::runtime_error(std::string("fusedstep: ") + op + " is for CPUs");
  }
  return run;
}

std::tuple<Tensor, bool> pinv_small(const Tensor& A, double atol, double rtol) {
  constexpr const char* kFunction = "pinv_small";
  check_small(kFunction, A);
  check_tolerance(kFunction, "atol", atol);
  check_tolerance(kFunction, "rtol", rtol);
  auto* const run = require_small(kFunction, A);
  const int64_t dim = A.dim();
  const Tensor P = empty_on(A, sizes_of(A, {A.size(dim - 1), A.size(dim - 2)}), A.scalar_type());
  Workspace workspace(A);
  return {P, A.numel() == 0 || run(problem_of(A, {atol}, {rtol}, false, P), workspace)};
}

std::tuple<Tensor, bool> lstsq_small(const Tensor& A, const Tensor& B, double atol, double rtol) {
  constexpr const char* kFunction = "lstsq_small";
  check_small(kFunction, A, &B);
  check_tolerance(kFunction, "atol", atol);
  check_tolerance(kFunction, "rtol", rtol);
  auto* const run = require_small(kFunction, A);
  const int64_t right_sides = B.size(B.dim() - 1);
  Tensor X = empty_on(A, sizes_of(A, {A.size(A.dim() - 1), right_sides}), A.scalar_type());
  if (A.numel() == 0) {
    torch::stable::zero_(X);
  }
  if (A.numel() == 0 || B.numel() == 0) {
    return {X, true};
  }
  TinyPinv problem = problem_of(A, {atol}, {rtol}, false, X);
  problem.B = B.data_ptr();
  problem.right_sides = static_cast<int>(right_sides);
  Workspace workspace(A);
  return {X, run(problem, workspace)};
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // The pseudo-inverses of A, m and n at most 32, contiguous float32 or float64, by
  // kernels/linalg/tiny_pinv.h. For A [b, m, n] and atol, rtol [b], float64: P [b, n, m] and of
  // each matrix the rank (int64), the code of fusedstep.pinv (int32) and rcond (float64).
  m.def(
      "pinv_tiny(Tensor A, Tensor atol, Tensor rtol, bool jacobi) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  // For A [*, m, n] and the same tolerances for all: P [*, n, m].
  m.def("pinv_tiny.alike(Tensor A, float atol, float rtol, bool jacobi) -> Tensor");
  // P B [*, n, c] for B [*, m, c], contiguous and of A's dtype, c at most 32.
  m.def("lstsq_tiny(Tensor A, Tensor B, float atol, float rtol, bool jacobi) -> Tensor");
  // The same two on CPUs alone, for any m, n and c, by kernels/linalg/small_pinv.h; and whether all
  // is proved. Otherwise the result is undefined.
  m.def("pinv_small(Tensor A, float atol, float rtol) -> (Tensor, bool)");
  m.def("lstsq_small(Tensor A, Tensor B, float atol, float rtol) -> (Tensor, bool)");
}

FUSEDSTEP_IMPL(m) {
  m.impl("pinv_tiny", TORCH_BOX(&fusedstep::pinv_tiny));
  m.impl("pinv_tiny.alike", TORCH_BOX(&fusedstep::pinv_tiny_alike));
  m.impl("lstsq_tiny", TORCH_BOX(&fusedstep::lstsq_tiny));
  m.impl("pinv_small", TORCH_BOX(&fusedstep::pinv_small));
  m.impl("lstsq_small", TORCH_BOX(&fusedstep::lstsq_small));
}
