// The step pass of a stand-alone clip: gradients scaled in place, the same bits as on the CPU.
#include "tests/simt/launch_in_test.h"
#include "tests/simt/passes.h"

namespace fusedstep {
namespace {

std::vector<Spec> random_gradients(std::mt19937_64& random) {
  auto specs = random_specs(random, 1 + static_cast<int>(random() % 6), 1);
  for (Spec& spec : specs) spec.grad_dtype = spec.param_dtype;
  return specs;
}

// Returns by what the clip multiplied.
double check_clip(const std::vector<Spec>& specs, uint64_t seed, Values values, double max_norm) {
  const Problem expected(specs, seed, values, 0, true);
  const GroupHead no_group = {};  // the rule has no hyperparameters
  const auto norm =
      std::make_unique<double>(norm_on_cpu(expected.table(&no_group), Norm::kTwo, nullptr));
  const Clip clip{.norm = norm.get(),
                  .grad_scale = nullptr,
                  .found_inf = nullptr,
                  .max_norm = max_norm,
                  .skip_nonfinite = false};
  step_on_cpu("scale", expected, &no_group, clip);
  for (uint64_t s = 0; s < 3; ++s) {
    simt::configure({.seed = seed + s});
    const Problem actual(specs, seed, values, 0, true);
    *norm = norm_in_harness(actual.table(&no_group), Norm::kTwo, nullptr);
    step_in_harness("scale", actual, &no_group, clip);
    CHECK(actual == expected);
  }
  return decide(clip).multiplier;
}

// A clip by 1 writes nothing: what differs from the gradient stays different.
void check_clip_by_one(const std::vector<Spec>& specs, uint64_t seed, bool skips) {
  const GroupHead no_group = {};
  const double norm = 1;
  const Clip clip{.norm = &norm,
                  .grad_scale = nullptr,
                  .found_inf = nullptr,
                  .max_norm = 2,
                  .skip_nonfinite = false,
                  .skip_one = skips};
  const Problem before(specs, seed, Values::kNormal, 0), on_cpu(specs, seed, Values::kNormal, 0);
  const Problem in_harness(specs, seed, Values::kNormal, 0);
  step_on_cpu("scale", on_cpu, &no_group, clip);
  step_in_harness("scale", in_harness, &no_group, clip);
  CHECK((on_cpu == before) == skips);
  CHECK(in_harness == on_cpu);
}

}  // namespace
}  // namespace fusedstep

int main() {
  using fusedstep::Values;
  std::mt19937_64 random(1);
  for (int i = 0; i < 10; ++i) {
    auto specs = fusedstep::random_gradients(random);
    specs.push_back({.size = 100});
    CHECK(fusedstep::check_clip(specs, random(), Values::kNormal, 1.0) < 1);
    CHECK(fusedstep::check_clip(specs, random(), Values::kNormal, 1e9) == 1);
    fusedstep::check_clip(specs, random(), Values::kOneInfinity, 1.0);
    CHECK(std::isnan(fusedstep::check_clip(specs, random(), Values::kOneNaN, 1.0)));
    fusedstep::check_clip_by_one(specs, random(), true);
    fusedstep::check_clip_by_one(specs, random(), false);
  }
  return check::summary();
}
