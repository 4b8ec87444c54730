// The step pass of every rule: the CUDA kernel in the harness changes the same bits as the CPU
// kernel, whatever the order and however the arrays are stored.
#include "tests/simt/launch_in_test.h"
#include "tests/simt/passes.h"

namespace fusedstep {
namespace {

using Entry = RuleEntry<cpu::StepChunks>;

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

// Groups of a rule of which the test knows no more than its fields: each value is one that some
// hyperparameter takes, flags included.
std::vector<std::byte> random_groups(const Entry& rule, int count, std::mt19937_64& random,
                                     const float* lr) {
  static const double values[] = {0, 0.1, 0.9, 1};
  std::vector<std::byte> groups(static_cast<size_t>(count) * rule.group_bytes);
  for (int g = 0; g < count; ++g) {
    std::vector<double> of_fields;
    for (const std::string_view field : rule.fields) {
      of_fields.push_back(field == "lr"          ? std::ldexp(1.0, -static_cast<int>(random() % 12))
                          : field == "ema_decay" ? 0.99
                          : field == "counted"   ? 0
                          : field == "maximize" || field == "stochastic_rounding"
                              ? static_cast<double>(random() % 2)
                              : values[random() % std::size(values)]);
    }
    rule.make_group(groups.data() + static_cast<size_t>(g) * rule.group_bytes, of_fields.data(),
                    random() % 3 == 0 ? lr : nullptr, random());
  }
  return groups;
}

// Runs both passes on the CPU once and in the harness once for each schedule; returns whether they
// changed anything.
bool check_step(const Entry& rule, const std::vector<Spec>& specs,
                const std::vector<std::byte>& groups, uint64_t seed, const Setting& setting,
                int schedules) {
  const Problem before(specs, seed, setting.values, kMaxStates);
  const Problem expected(specs, seed, setting.values, kMaxStates);
  const auto norm = std::make_unique<double>(
      norm_on_cpu(expected.table(groups.data()), Norm::kTwo, setting.grad_scale));
  step_on_cpu(rule.name, expected, groups.data(), clip_of(setting, norm.get()));
  for (int s = 0; s < schedules; ++s) {
    simt::configure({.seed = seed + static_cast<uint64_t>(s)});
    const Problem actual(specs, seed, setting.values, kMaxStates);
    *norm = norm_in_harness(actual.table(groups.data()), Norm::kTwo, setting.grad_scale);
    step_in_harness(rule.name, actual, groups.data(), clip_of(setting, norm.get()));
    CHECK(actual == expected);
  }
  return !(before == expected);
}

// More than one turn of packs, an end of single elements, arrays that are aligned and arrays that
// are not.
void test_dtypes_and_alignments(const Entry& rule) {
  std::mt19937_64 random(1);
  for (const Dtype param : kDtypes) {
    for (const Dtype grad : kDtypes) {
      std::vector<Spec> specs;
      specs.push_back({.size = 2100, .param_dtype = param, .grad_dtype = grad});
      for (const int offset : {1, 4}) {
        const Spec spec{.size = 2100 + offset, .param_dtype = param, .grad_dtype = grad};
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
      CHECK(check_step(rule, specs, random_groups(rule, 1, random, nullptr), random(), {}, 1));
    }
  }
}

// Every way to store states, with every kind of parameter and of master.
void test_storage(const Entry& rule) {
  std::mt19937_64 random(6);
  for (const Dtype param : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    for (const States states : {States::kComputed, States::kBFloat16, States::kCoded}) {
      for (const Dtype master : {Dtype::kNone, Dtype::kFloat32, Dtype::kInt16, Dtype::kUInt8}) {
        if (master != Dtype::kNone && param != Dtype::kBFloat16) continue;
        std::vector<Spec> specs;
        for (const int64_t size : {3000, 128, 5}) {
          specs.push_back({.size = size, .param_dtype = param, .grad_dtype = param, .step = 7});
          specs.back().states = states;
          specs.back().master = master;
          specs.back().average = size != 128;
        }
        CHECK(check_step(rule, specs, random_groups(rule, 1, random, nullptr), random(), {}, 1));
      }
    }
  }
}

void test_random_tables(const Entry& rule) {
  std::mt19937_64 random(2);
  const auto lr = std::make_unique<float>(2e-3f);
  const auto grad_scale = std::make_unique<float>(1024.0f);
  const auto no_inf = std::make_unique<float>(0.0f);
  for (int i = 0; i < 4; ++i) {
    const auto groups = random_groups(rule, 4, random, lr.get());
    const auto specs = random_specs(random, 1 + static_cast<int>(random() % 8), 4);
    Setting setting;
    setting.with_norm = random() % 4 != 0;
    setting.max_norm = random() % 4 ? 1 : -1;
    setting.grad_scale = random() % 2 ? grad_scale.get() : nullptr;
    setting.found_inf = random() % 2 ? no_inf.get() : nullptr;
    check_step(rule, specs, groups, random(), setting, 2);
  }
}

void test_gradients_that_are_not_finite(const Entry& rule) {
  std::mt19937_64 random(3);
  const auto group = random_groups(rule, 1, random, nullptr);
  for (const Values values :
       {Values::kHuge, Values::kTiny, Values::kOneNaN, Values::kOneInfinity}) {
    auto specs = random_specs(random, 2, 1);
    specs.push_back({.size = 1200});
    const bool finite = values == Values::kTiny;
    check_step(rule, specs, group, random(), {.values = values}, 1);
    for (Spec& spec : specs) spec.grad_dtype = Dtype::kFloat32;  // which holds the huge values
    Setting skip{.values = values, .skip_nonfinite = true};
    const bool stepped = check_step(rule, specs, group, random(), skip, 1);
    CHECK(stepped == (finite || values == Values::kHuge));
  }
}

void test_found_inf(const Entry& rule) {
  std::mt19937_64 random(4);
  const auto found_inf = std::make_unique<float>(1.0f);
  const auto specs = random_specs(random, 5, 1);
  Setting setting;
  setting.found_inf = found_inf.get();
  const auto group = random_groups(rule, 1, random, nullptr);
  CHECK(!check_step(rule, specs, group, random(), setting, 2));
}

// A tensor of many chunks advances its step count once, after all of them have read it.
void test_many_chunks(const Entry& rule) {
  std::mt19937_64 random(5);
  const std::vector<Spec> specs{{.size = 3 * kChunkSize + 5, .step = 1}, {.size = kChunkSize}};
  CHECK(check_step(rule, specs, random_groups(rule, 1, random, nullptr), 5, {}, 2));
}

}  // namespace
}  // namespace fusedstep

int main() {
  for (const auto& rule : fusedstep::rules<fusedstep::cpu::StepChunks>()) {
    if (rule.name == "scale") continue;  // test_scale_kernel.cpp
    std::printf("%s\n", std::string(rule.name).c_str());
    fusedstep::test_dtypes_and_alignments(rule);
    fusedstep::test_storage(rule);
    fusedstep::test_random_tables(rule);
    fusedstep::test_gradients_that_are_not_finite(rule);
    fusedstep::test_found_inf(rule);
    fusedstep::test_many_chunks(rule);
  }
  return check::summary();
}
