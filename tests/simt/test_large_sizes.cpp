// Tensors of 2^31 elements and more: every index that could be cut to 32 bits, without the memory
// for them.
#include <sys/mman.h>

#include "tests/simt/launch_in_test.h"
#include "tests/simt/passes.h"

namespace fusedstep {
namespace {

constexpr int64_t kLarge = (int64_t{1} << 33) + 12345;  // 2^32 elements would wrap to a valid index

void test_layout() {
  Row large = {}, small = {};
  large.size = kLarge;
  small.size = 10;
  const Layout layout = make_layout({small, large, small});
  const Table table{layout.rows.data(), nullptr, layout.row_of_chunk.data(), nullptr,
                    layout.num_chunks()};
  const int64_t chunks = kLarge / kChunkSize + 1;
  CHECK(layout.num_chunks() == chunks + 2);
  int64_t elements = 0;
  bool consecutive = true;
  for (int64_t c = 0; c < layout.num_chunks(); ++c) {
    const Chunk chunk = locate(table, c);
    consecutive &= chunk.partial == c && chunk.size > 0 && chunk.size <= kChunkSize;
    if (chunk.row == 1) {
      consecutive &= chunk.begin == elements;
      elements += chunk.size;
    }
  }
  CHECK(consecutive);
  CHECK(elements == kLarge);
  const auto elements_before = [&](int64_t worker) {
    const Position at = share_begin(layout, worker, 7);
    const int64_t before = at.chunk * kChunkOverhead;
    return layout.cost[at.chunk] - before + at.element;
  };
  CHECK(share_begin(layout, 0, 7).chunk == 0 && share_begin(layout, 0, 7).element == 0);
  CHECK(share_begin(layout, 7, 7).chunk == layout.num_chunks());
  for (int64_t w = 0; w < 7; ++w) {
    const int64_t share = elements_before(w + 1) - elements_before(w);
    CHECK(std::abs(share - elements_before(7) / 7) < 2 * kChunkOverhead);
  }
}

// Address space without memory behind it, but for the pages that are touched.
class Reserved {
 public:
  explicit Reserved(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Reserved() {
    if (valid()) munmap(data_, bytes_);
  }
  bool valid() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

// The last chunk alone, by kernels that find it through 64-bit indices or not at all.
void test_last_chunk() {
  const Reserved memory(kLarge * static_cast<int64_t>(sizeof(BFloat16)));
  if (!memory.valid()) {
    std::puts(
        "the last chunk of a large tensor: skipped, this machine gives out no 16 GiB of addresses");
    return;
  }
  auto* values = static_cast<BFloat16*>(memory.data());
  constexpr int64_t kLastChunk = kLarge / kChunkSize;
  constexpr int64_t kBegin = kLastChunk * kChunkSize;
  const auto set = [&] {
    for (int64_t i = kBegin; i < kLarge; ++i) values[i] = round_to_bfloat16(3.0f);
  };
  const auto all_are = [&](float value) {
    bool same = true;
    for (int64_t i = kBegin; i < kLarge; ++i) same &= widen(values[i]) == value;
    return same && widen(values[kBegin - 1]) == 0 && widen(values[kLarge - kBegin]) == 0;
  };

  Row row = {};
  row.param = memory.data();
  row.size = kLarge;
  row.param_dtype = row.grad_dtype = Dtype::kBFloat16;
  const Layout layout = make_layout({row});
  void* grads[] = {memory.data()};
  const Table table{layout.rows.data(), grads, layout.row_of_chunk.data(), nullptr,
                    layout.num_chunks()};
  const double norm = 2;
  const Clip halve{&norm, nullptr, nullptr, 1.000001, false};
  const GroupHead no_group = {};
  Table scaled = table;
  scaled.groups = &no_group;

  set();
  find_rule<cpu::StepChunks>("scale")->step(scaled, halve, {kLastChunk}, {kLastChunk + 1});
  CHECK(all_are(1.5f));

  set();
  unsigned finished = 0;
  const Launch last{Dtype::kFloat32, false, kLastChunk, 1};
  CHECK(find_rule<cuda::StepPass>("scale")->step(scaled, halve, last, &finished, nullptr) ==
        cudaSuccess);
  CHECK(all_are(1.5f));

  // A table of one chunk, the last of its tensor: the norm kernel takes no range.
  Row shifted = layout.rows[0];
  shifted.first_chunk = shifted.first_partial = -kLastChunk;
  const int32_t row_of_chunk = 0;
  const Table only_last{&shifted, grads, &row_of_chunk, nullptr, 1};
  const double expected = std::sqrt(1.5 * 1.5 * static_cast<double>(kLarge - kBegin));
  CHECK(std::abs(norm_on_cpu(only_last, Norm::kTwo, nullptr) / expected - 1) < 1e-6);
  CHECK(std::abs(norm_in_harness(only_last, Norm::kTwo, nullptr) / expected - 1) < 1e-6);
}

}  // namespace
}  // namespace fusedstep

int main() {
  fusedstep::test_layout();
  fusedstep::test_last_chunk();
  return check::summary();
}
