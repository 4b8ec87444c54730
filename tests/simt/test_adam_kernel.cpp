// The step pass of Adam: the CUDA kernel in the harness changes the same bits as the CPU kernel,
// whatever the order.
#include "kernels/rules/adam.h"
#include "tests/simt/launch_in_test.h"
#include "tests/simt/passes.h"

namespace fusedstep {
namespace {

constexpr AdamGroup kAdamW = {.lr_tensor = nullptr,
                              .lr = 1e-3,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .decoupled = 1,
                              .maximize = 0,
                              .amsgrad = 0};

struct Setting {
  Values values = Values::kNormal;
  double max_norm = 1;  // below 0: no clip
  bool with_norm = true;
  bool skip_nonfinite = false;
  const float* grad_scale = nullptr;
  const float* found_inf = nullptr;
};

Clip clip_of(const Setting& setting, const double* norm) {
  return {.norm = setting.with_norm ? norm : nullptr,
          .grad_scale = setting.grad_scale,
          .found_inf = setting.found_inf,
          .max_norm = setting.max_norm,
          .skip_nonfinite = setting.skip_nonfinite};
}

// Runs both passes on the CPU once and in the harness once for each schedule; returns whether they
// changed anything.
bool check_step(const std::vector<Spec>& specs, const std::vector<AdamGroup>& groups, uint64_t seed,
                const Setting& setting, int schedules) {
  const Problem before(specs, seed, setting.values, kMaxStates);
  const Problem expected(specs, seed, setting.values, kMaxStates);
  const auto norm = std::make_unique<double>(
      norm_on_cpu(expected.table(groups.data()), Norm::kTwo, setting.grad_scale));
  step_on_cpu(cpu::adam_chunks, expected, groups.data(), clip_of(setting, norm.get()));
  for (int s = 0; s < schedules; ++s) {
    simt::configure({.seed = seed + static_cast<uint64_t>(s)});
    const Problem actual(specs, seed, setting.values, kMaxStates);
    *norm = norm_in_harness(actual.table(groups.data()), Norm::kTwo, setting.grad_scale);
    step_in_harness(cuda::adam_pass, actual, groups.data(), clip_of(setting, norm.get()));
    CHECK(actual == expected);
  }
  return !(before == expected);
}

// A head of single elements, packs, a tail; arrays that are aligned alike and arrays that are not.
void test_dtypes_and_alignments() {
  std::mt19937_64 random(1);
  for (const Dtype param : kDtypes) {
    for (const Dtype grad : kDtypes) {
      for (const int64_t amsgrad : {0, 1}) {
        AdamGroup group = kAdamW;
        group.amsgrad = amsgrad;
        std::vector<Spec> specs;
        for (const int offset : {0, 1, 3, 4, 8}) {
          const Spec spec{.size = 2500 + offset, .param_dtype = param, .grad_dtype = grad};
          specs.push_back(spec);
          specs.back().param_offset = specs.back().grad_offset = specs.back().state_offset = offset;
          specs.push_back(spec);
          specs.back().grad_offset = offset;
          specs.push_back(spec);
          specs.back().state_offset = offset;
        }
        for (const int64_t size : {0, 1, 2, 7, 9}) {
          specs.push_back({.size = size, .param_dtype = param, .grad_dtype = grad, .step = 3});
          specs.back().param_offset = specs.back().grad_offset = specs.back().state_offset = 1;
        }
        CHECK(check_step(specs, {group}, random(), {}, 1));
      }
    }
  }
}

std::vector<AdamGroup> random_groups(std::mt19937_64& random, const float* lr) {
  std::vector<AdamGroup> groups(4, kAdamW);
  for (AdamGroup& group : groups) {
    group.lr = std::ldexp(1.0, -static_cast<int>(random() % 12));
    group.weight_decay = random() % 2 ? 0.01 : 0;
    group.decoupled = static_cast<int64_t>(random() % 2);
    group.maximize = static_cast<int64_t>(random() % 2);
    group.amsgrad = static_cast<int64_t>(random() % 2);
    if (random() % 3 == 0) group.lr_tensor = lr;
  }
  return groups;
}

void test_random_tables() {
  std::mt19937_64 random(2);
  const auto lr = std::make_unique<float>(2e-3f);
  const auto grad_scale = std::make_unique<float>(1024.0f);
  const auto no_inf = std::make_unique<float>(0.0f);
  for (int i = 0; i < 12; ++i) {
    const auto groups = random_groups(random, lr.get());
    const auto specs = random_specs(random, 1 + static_cast<int>(random() % 8), 4);
    Setting setting;
    setting.with_norm = random() % 4 != 0;
    setting.max_norm = random() % 4 ? 1 : -1;
    setting.grad_scale = random() % 2 ? grad_scale.get() : nullptr;
    setting.found_inf = random() % 2 ? no_inf.get() : nullptr;
    CHECK(check_step(specs, groups, random(), setting, 3));
  }
}

void test_gradients_that_are_not_finite() {
  std::mt19937_64 random(3);
  for (const Values values :
       {Values::kHuge, Values::kTiny, Values::kOneNaN, Values::kOneInfinity}) {
    auto specs = random_specs(random, 4, 1);
    specs.push_back({.size = 3000});
    const bool finite = values == Values::kTiny;
    CHECK(check_step(specs, {kAdamW}, random(), {.values = values}, 2));
    for (Spec& spec : specs) spec.grad_dtype = Dtype::kFloat32;  // which holds the huge values
    Setting skip{.values = values, .skip_nonfinite = true};
    CHECK(check_step(specs, {kAdamW}, random(), skip, 2) == (finite || values == Values::kHuge));
  }
}

void test_found_inf() {
  std::mt19937_64 random(4);
  const auto found_inf = std::make_unique<float>(1.0f);
  const auto specs = random_specs(random, 5, 1);
  Setting setting;
  setting.found_inf = found_inf.get();
  CHECK(!check_step(specs, {kAdamW}, random(), setting, 2));
}

// A tensor of many chunks advances its step count once, after all of them have read it.
void test_many_chunks() {
  const std::vector<Spec> specs{{.size = 6 * kChunkSize + 5, .step = 1}, {.size = 2 * kChunkSize}};
  CHECK(check_step(specs, {kAdamW}, 5, {}, 4));
}

}  // namespace
}  // namespace fusedstep

int main() {
  fusedstep::test_dtypes_and_alignments();
  fusedstep::test_random_tables();
  fusedstep::test_gradients_that_are_not_finite();
  fusedstep::test_found_inf();
  fusedstep::test_many_chunks();
  return check::summary();
}
