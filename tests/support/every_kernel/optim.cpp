// Every rule with every choice of its flags in every form of storage; norms; QK-Clip; codes of 8
// bits.
#include <cstdlib>

#include "kernels/optim/norm.h"
#include "kernels/optim/qk_clip.h"
#include "kernels/optim/quantize.h"
#include "kernels/optim/rule.h"
#include "kernels/optim/symmetric.h"
#include "tests/support/every_kernel/results.h"

namespace fusedstep::every_kernel {
namespace {

// Values for a rule's field: a flag has both.
std::vector<double> values_for(std::string_view field) {
  struct Values {
    std::string_view field;
    double value;
  };
  constexpr Values kValues[] = {{"lr", 0.01},          {"ema_decay", 0.99}, {"beta1", 0.9},
                                {"beta2", 0.999},      {"eps", 1e-8},       {"alpha", 0.99},
                                {"lr_decay", 0.125},   {"ratio", 0.2},      {"dampening", 0.1},
                                {"weight_decay", 0.1}, {"counted", 0}};
  constexpr std::string_view kFlags[] = {"maximize", "decoupled", "amsgrad", "centered",
                                         "nesterov", "use_muon",  "descent", "stochastic_rounding"};
  if (field == "momentum") {
    return {0, 0.9};
  }
  for (const auto& known : kValues) {
    if (known.field == field) {
      return {known.value};
    }
  }
  for (const auto flag : kFlags) {
    if (flag == field) {
      return {0, 1};
    }
  }
  std::fprintf(stderr, "no value for the field %s\n", std::string(field).c_str());
  std::exit(1);
}

// How a parameter and its states are stored.
struct Form {
  const char* name;
  Dtype param, grad, signed_state, squares, master;
  bool averaged = true;
};

using enum Dtype;

constexpr Form kForms[] = {
    {"float32", kFloat32, kFloat32, kFloat32, kFloat32, kNone},
    {"float64", kFloat64, kFloat64, kFloat64, kFloat64, kNone},
    {"bfloat16", kBFloat16, kBFloat16, kFloat32, kFloat32, kNone},
    {"bfloat16_alone", kBFloat16, kBFloat16, kFloat32, kFloat32, kNone, false},
    {"float16", kFloat16, kFloat16, kFloat32, kFloat32, kNone},
    {"float64_grad", kFloat32, kFloat64, kFloat32, kFloat32, kNone},
    {"bfloat16_state", kFloat32, kFloat32, kBFloat16, kBFloat16, kNone},
    {"int8_state", kFloat32, kBFloat16, kInt8, kInt8, kNone},
    {"uint8_state", kFloat32, kFloat16, kInt8, kUInt8, kNone},
    {"float32_master", kBFloat16, kBFloat16, kFloat32, kFloat32, kFloat32},
    {"remainder", kBFloat16, kFloat32, kInt8, kUInt8, kInt16},
    {"correction", kBFloat16, kBFloat16, kInt8, kUInt8, kUInt8},
};

// Which state of a rule is never negative.
bool is_of_squares(std::string_view rule, int k) {
  const bool adam = rule == "adam" || rule == "muon";
  return adam ? k > 0 : k == 0 && (rule == "rmsprop" || rule == "adagrad");
}

constexpr int64_t kSizes[] = {1500, 5, 0, 700};  // a tile is 256 elements, a block 128

// Three steps of every tensor, in two shares, with clipping, loss scale and, in most forms, a
// moving average.
void step(const RuleEntry<cpu::StepChunks>& rule, const Form& form,
          const std::vector<double>& values, const std::string& name) {
  Numbers numbers;
  std::vector<double> group((rule.group_bytes + 7) / 8);
  rule.make_group(group.data(), values.data(), nullptr, 42);
  std::vector<Row> listed;
  std::vector<std::vector<Array>> arrays;  // of each tensor: parameter, gradient, by role
  for (const int64_t size : kSizes) {
    Row row = {};
    row.size = size;
    row.position = static_cast<int32_t>(arrays.size());
    row.param_dtype = form.param;
    row.grad_dtype = form.grad;
    auto& own = arrays.emplace_back();
    own.push_back(random(numbers, form.param, size));
    own.push_back(random(numbers, form.grad, size));
    const auto give = [&](int role, Array array) {
      row.dtypes[role] = array.dtype;
      own.push_back(std::move(array));
      row.arrays[role] = own.back().data();
    };
    for (int k = 0; k < rule.num_states(group.data()); ++k) {
      const Dtype dtype = is_of_squares(rule.name, k) ? form.squares : form.signed_state;
      give(kState + k, zeros(dtype, size));
      if (dtype == Dtype::kInt8 || dtype == Dtype::kUInt8) {
        give(kScale + k, zeros(Dtype::kFloat32, blocks_of(size)));
      }
    }
    if (form.master != Dtype::kNone) {
      give(kMaster, zeros(form.master, size));
    }
    if (form.averaged) {
      give(kAverage, random(numbers, compute_dtype(form.param), size));
    }
    give(kStep, zeros(Dtype::kFloat32, 1));
    row.param = own[0].data();
    listed.push_back(row);
  }
  const Layout layout = make_layout(listed);
  std::vector<void*> grads;
  for (const int32_t i : layout.order) {
    grads.push_back(arrays[i][1].data());
  }
  const Table table{layout.rows.data(), grads.data(), layout.row_of_chunk.data(), group.data(),
                    layout.num_chunks()};
  const float grad_scale = 1024;
  Hash hash;
  for (int i = 0; i < 3; ++i) {
    std::vector<double> partials(layout.num_chunks());
    cpu::norm_chunks(table, Norm::kTwo, 0, layout.num_chunks(), partials.data());
    const double norm =
        cpu::fold_partials(Norm::kTwo, partials.data(), layout.num_chunks(), &grad_scale);
    const Clip clip{&norm, &grad_scale, nullptr, 0.75 * norm, true};
    const Position middle = share_begin(layout, 1, 2);
    rule.step(table, clip, middle, {layout.num_chunks()});
    rule.step(table, clip, {0}, middle);
    cpu::advance_steps(table, static_cast<int64_t>(layout.rows.size()), rule.group_bytes, clip);
    hash.add_all(&norm, 1);
  }
  for (auto& own : arrays) {
    for (auto& array : own) {
      hash.add_all(array);
    }
  }
  print(name, hash);
}

// Every rule with every choice of its flags in every form.
void steps() {
  for (const auto& rule : rules<cpu::StepChunks>()) {
    std::vector<std::vector<double>> choices = {{}};
    for (const auto field : rule.fields) {
      std::vector<std::vector<double>> longer;
      for (const auto& choice : choices) {
        for (const double value : values_for(field)) {
          longer.push_back(choice);
          longer.back().push_back(value);
        }
      }
      choices = longer;
    }
    for (const Form& form : kForms) {
      for (size_t c = 0; c < choices.size(); ++c) {
        step(rule, form, choices[c],
             std::string(rule.name) + " " + form.name + " " + std::to_string(c));
      }
    }
  }
}

// Of gradients with elements as small and as large as a dtype has, and with a NaN.
void norms() {
  for (const Dtype dtype : kFloating) {
    for (const double scale : {1.0, 0x1p-14, 0x1p15, 0x1p70, -1.0}) {
      Numbers numbers;
      Array grad = random(numbers, dtype, kChunkSize + 1037, scale);
      if (scale < 0) {
        with_storage(dtype, [&](auto storage) {
          using T = decltype(storage);
          grad.as<T>()[7] = store_as<T>(std::numeric_limits<double>::quiet_NaN());
        });
      }
      Row row = {};
      row.size = grad.size;
      row.grad_dtype = row.param_dtype = dtype;
      const Layout layout = make_layout({row});
      void* const data = grad.data();
      const Table table{layout.rows.data(), &data, layout.row_of_chunk.data(), nullptr, 2};
      Hash hash;
      for (const Norm norm : {Norm::kTwo, Norm::kOne, Norm::kInf}) {
        double partials[2];
        cpu::norm_chunks(table, norm, 0, 2, partials);
        const double whole = cpu::fold_partials(norm, partials, 2, nullptr);
        hash.add_all(&whole, 1);
      }
      print(std::string("norm ") + name_of(dtype) + " " + std::to_string(scale), hash);
    }
  }
}

// Three heads, of which one is scaled, row by row and column by column.
void qk_clip(Dtype dtype) {
  constexpr int64_t kRows = 3 * 17, kWidth = 129;
  Numbers numbers;
  Array weight = random(numbers, dtype, kRows * kWidth);
  const float max_logits[] = {30, std::numeric_limits<float>::infinity(), 3};
  Row row = {};
  row.param = weight.data();
  row.size = weight.size;
  row.param_dtype = row.grad_dtype = dtype;
  const Layout layout = make_layout({row});
  Hash hash;
  for (const int64_t stride : {kWidth, int64_t{1}}) {
    const QkHeads heads{max_logits, 17, 0, kRows, stride};
    const Table table{layout.rows.data(), nullptr, layout.row_of_chunk.data(), &heads,
                      layout.num_chunks()};
    cpu::qk_clip(table, 7, {0}, {layout.num_chunks()});
    hash.add_all(weight);
  }
  print(std::string("qk_clip ") + name_of(dtype), hash);
}

template <typename Code>
void codes(Dtype dtype) {
  Numbers numbers;
  Array x = random(numbers, Dtype::kFloat32, 1000), y = zeros(Dtype::kFloat32, 1000);
  if (dtype == Dtype::kUInt8) {
    for (int i = 0; i < 1000; ++i) {
      x.as<float>()[i] = x.as<float>()[i] * x.as<float>()[i];
    }
  }
  Array scales = zeros(Dtype::kFloat32, blocks_of(1000)), to = zeros(dtype, 1000);
  cpu::encode_state(x.as<float>(), 1000, to.as<Code>(), scales.as<float>());
  cpu::decode_state(to.as<Code>(), scales.as<float>(), 1000, y.as<float>());
  Hash hash;
  hash.add_all(to);
  hash.add_all(scales);
  hash.add_all(y);
  print(std::string("quantize ") + name_of(dtype), hash);
}

// Of whole numbers, whose sums are exact: roundings depend on the instruction set.
void symmetric() {
  constexpr int64_t kRows = 37, kWidth = 301;
  Numbers numbers;
  Array a = zeros(Dtype::kBFloat16, kRows * kWidth), out = zeros(Dtype::kBFloat16, kRows * kRows);
  for (int64_t i = 0; i < kRows * kWidth; ++i) {
    a.as<BFloat16>()[i] = round_to_bfloat16(static_cast<float>(numbers.next() % 5) - 2);
  }
  const SymmetricProducts s{.a = a.as<BFloat16>(),
                            .b = a.as<BFloat16>(),
                            .c = nullptr,
                            .out = out.as<BFloat16>(),
                            .batch = 1,
                            .rows = kRows,
                            .width = kWidth,
                            .alpha = 3,
                            .beta = 0};
  const int64_t tiles = cpu::symmetric_tiles(s), bytes = cpu::symmetric_scratch(s, tiles);
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> scratch(bytes / sizeof(Line) + 1);
  cpu::multiply_tiles(s, 0, tiles, scratch.data()->bytes);
  Hash hash;
  hash.add_all(out);
  print("symmetric", hash);
}

}  // namespace

void run_optim() {
  symmetric();
  steps();
  norms();
  for (const Dtype dtype : kFloating) {
    qk_clip(dtype);
  }
  codes<int8_t>(Dtype::kInt8);
  codes<uint8_t>(Dtype::kUInt8);
}

}  // namespace fusedstep::every_kernel
