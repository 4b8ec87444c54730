// Runs the passes over a Problem: by the CPU kernels, and by the CUDA kernels' source in the
// harness.
#pragma once

#include <bit>
#include <cmath>
#include <memory>
#include <ranges>
#include <vector>

#include "kernels/optim/norm.cuh"
#include "kernels/optim/norm.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/step.cuh"
#include "tests/simt/check.h"
#include "tests/simt/problem.h"

namespace fusedstep {

inline bool same_bits(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

inline double norm_on_cpu(const Table& table, Norm norm, const float* grad_scale) {
  std::vector<double> partials(static_cast<size_t>(table.num_chunks));
  cpu::norm_chunks(table, norm, 0, table.num_chunks, partials.data());
  return cpu::fold_partials(norm, partials.data(), table.num_chunks, grad_scale);
}

inline double norm_in_harness(const Table& table, Norm norm, const float* grad_scale) {
  std::vector<double> partials(static_cast<size_t>(table.num_chunks), NAN);
  const auto ticket = std::make_unique<unsigned>(0);
  const auto out = std::make_unique<double>(NAN);
  const auto published = std::make_unique<float>(NAN);
  CHECK(cuda::norm_pass(table, norm, grad_scale, partials.data(), ticket.get(), out.get(),
                        published.get(), nullptr) == cudaSuccess);
  CHECK(*ticket == 0);
  CHECK(same_bits(*published, static_cast<float>(*out)));
  return *out;
}

inline void step_on_cpu(std::string_view rule, const Problem& problem, const void* groups,
                        const Clip& clip) {
  const auto& entry = *find_rule<cpu::StepChunks>(rule);
  const Table table = problem.table(groups);
  constexpr int kWorkers = 3;  // whose shares begin within chunks
  for (int w = 0; w < kWorkers; ++w) {
    entry.step(table, clip, share_begin(problem.layout(), w, kWorkers),
               share_begin(problem.layout(), w + 1, kWorkers));
  }
  cpu::advance_steps(table, static_cast<int64_t>(problem.layout().rows.size()), entry.group_bytes,
                     clip);
}

inline void step_in_harness(std::string_view rule, const Problem& problem, const void* groups,
                            const Clip& clip) {
  auto* const step_pass = find_rule<cuda::StepPass>(rule)->step;
  const size_t rows = problem.layout().rows.size();
  const auto finished = std::make_unique<unsigned[]>(rows);
  for (const Launch& launch : std::views::reverse(problem.layout().launches)) {
    CHECK(step_pass(problem.table(groups), clip, launch, finished.get(), nullptr) == cudaSuccess);
  }
  for (size_t i = 0; i < rows; ++i) CHECK(finished[i] == 0);
}

}  // namespace fusedstep
