// The CPU as a device: the kernels' loops on torch's threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "csrc/device.h"
#include "kernels/linalg/small_pinv.h"
#include "kernels/optim/rule.h"

namespace fusedstep {
namespace {

constexpr int64_t kWorthAThread = 16384;  // elements

// Calls pass(argument, begin, end) on ranges of `count` things of so many elements each.
template <typename Pass, typename Argument>
void share(Pass&& pass, const Argument& argument, int64_t count, int64_t elements_of_each) {
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / elements_of_each);
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { pass(argument, begin, end); });
}

void gram(const GramRows& rows, Workspace&) {
  constexpr int64_t kPairsWorthAThread = 4;
  constexpr std::align_val_t kAlign{64};
  constexpr auto kFree = [](double* p) { ::operator delete[](p, kAlign); };
  torch::stable::parallel_for(0, rows.batch * cpu::gram_pairs(rows.width), kPairsWorthAThread,
                              [&](int64_t begin, int64_t end) {
                                const std::unique_ptr<double[], decltype(kFree)> scratch(
                                    new (kAlign) double[cpu::gram_scratch(rows)]);
                                cpu::add_pairs(rows, begin, end, scratch.get());
                              });
}

void certify(const Certificates& c, Workspace&) {
  share(cpu::sum_strips, c, c.batch * strips_of(c.width), kCertificateRows * c.width);
  share(cpu::certify_matrices, c, c.batch, strips_of(c.width));
}

void truncate(const Truncation& t, Workspace&) {
  share(cpu::truncate, t, t.batch, t.width);
  share(cpu::scale_rows, t, t.batch * t.count, t.width);
}

// A batch on the threads, or else the parts of a matrix: torch runs nested loops one after another.
void row_space(const RowSpaces& s, Workspace&) {
  constexpr int64_t kWorthSharing = 200;  // columns
  const cpu::Shares shares = [&](int64_t count, const auto& part) {
    if (s.width < kWorthSharing) {
      part(0, count);
    } else {
      torch::stable::parallel_for(0, count, 1, part);
    }
  };
  const auto each = [&](const RowSpaces& s, int64_t begin, int64_t end) {
    for (int64_t matrix = begin; matrix < end; ++matrix) {
      cpu::find_row_space(s, matrix, shares);
    }
  };
  share(each, s, s.batch, s.width * s.width);
}

void tiny_pinv(const TinyPinv& p, Workspace&) {
  constexpr int64_t kOperationsWorthAThread = 65536;  // about
  constexpr int64_t kAtOnce = 8;                      // which the kernel takes in the time of one
  const int64_t k = std::min(p.rows, p.columns), operations = 3 * k * p.rows * p.columns;
  const int64_t grain = std::max(kAtOnce, kOperationsWorthAThread / operations / kAtOnce * kAtOnce);
  torch::stable::parallel_for(0, p.count, grain,
                              [&](int64_t begin, int64_t end) { cpu::tiny_pinv(p, begin, end); });
}

// The matrices that come after one that is not proved may be left out.
bool small_pinv(const TinyPinv& p, Workspace&) {
  std::atomic<bool> proved = true;
  torch::stable::parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t matrix = begin; matrix < end && proved; ++matrix) {
      if (!cpu::small_pinv(p, matrix)) {
        proved = false;
      }
    }
  });
  return proved;
}

void segment_sum(const Segments& s, Workspace&) {
  share(cpu::sum_pieces, s, pieces_of(s.count), kPiece * s.width);
  share(cpu::collect_heads, s, pieces_of(s.count), kPiece * s.width);
}

void softmax_by_rows(const Softmax& s) {
  const int64_t chunks = chunks_of_row(s);
  const auto rows = [=](const Softmax& s, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      cpu::sum_chunks(s, row, 0, chunks);
      cpu::fold_row(s, row);
      if (s.writes) {
        cpu::scale_chunks(s, row, 0, chunks);  // which are in the cache
      }
    }
  };
  share(rows, s, s.count, s.classes);
}

// All threads at one row; of the next they begin with what they wrote of it.
void softmax_by_chunks(const Softmax& s) {
  for (int64_t row = 0; row < s.count + s.writes; ++row) {
    const auto chunks = [=](const Softmax& s, int64_t begin, int64_t end) {
      if (s.writes && row > 0) {
        cpu::scale_chunks(s, row - 1, begin, end);
      }
      if (row < s.count) {
        cpu::sum_chunks(s, row, begin, end);
      }
    };
    share(chunks, s, chunks_of_row(s), kSoftmaxChunk);
    if (row < s.count) {
      cpu::fold_row(s, row);
    }
  }
}

void softmax(const Softmax& s, Workspace&) {
  const bool independent = s.root.gram == nullptr;
  if (independent && s.count >= torch::stable::get_num_threads()) {
    softmax_by_rows(s);
  } else {
    softmax_by_chunks(s);
  }
}

// Calls f(begin, end) on ranges of a table's chunks with even shares of the work.
template <typename F>
void for_shares(const Layout& layout, const F& f) {
  const int64_t useful = layout.cost.back() / kWorthAThread + 1;
  const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), useful);
  if (workers == 1) {
    f(Position{0}, Position{layout.num_chunks()});
    return;
  }
  torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    f(share_begin(layout, first, workers), share_begin(layout, last, workers));
  });
}

void norm_of(const Table& table, const Layout& layout, const NormWork& work) {
  std::vector<double> partials(table.num_chunks);
  // A chunk has one partial result, so it is for the worker whose share it begins in.
  const auto whole = [](Position at) { return at.element > 0 ? at.chunk + 1 : at.chunk; };
  for_shares(layout, [&](Position begin, Position end) {
    cpu::norm_chunks(table, work.norm, whole(begin), whole(end), partials.data());
  });
  *work.out = cpu::fold_partials(work.norm, partials.data(), table.num_chunks, work.grad_scale);
  if (work.published != nullptr) {
    *work.published = static_cast<float>(*work.out);
  }
}

// The table is read where it is, however long it lives.
void run(const TableWork& work) {
  const Layout& layout = work.table.layout;
  const Table table{layout.rows.data(), work.table.grads.data(), layout.row_of_chunk.data(),
                    work.groups.data(), layout.num_chunks()};
  if (work.norm) {
    norm_of(table, layout, *work.norm);
  }
  if (work.step) {
    const Clip& clip = work.step->clip;
    const auto& rule = *find_rule<cpu::StepChunks>(work.step->rule);
    for_shares(layout, [&](Position begin, Position end) { rule.step(table, clip, begin, end); });
    cpu::advance_steps(table, static_cast<int64_t>(layout.rows.size()), rule.group_bytes, clip);
  }
}

void qk_clip(const QkClipWork& work) {
  const Layout& layout = work.table.layout;
  const Table table{layout.rows.data(), work.table.grads.data(), layout.row_of_chunk.data(),
                    work.heads.data(), layout.num_chunks()};
  for_shares(layout, [&](Position begin, Position end) {
    cpu::qk_clip(table, work.threshold, begin, end);
  });
}

}  // namespace

const Device kCpuDevice{
    .gram = gram,
    .certify = certify,
    .truncate = truncate,
    .tiny_pinv = tiny_pinv,
    .row_space = row_space,
    .small_pinv = small_pinv,
    .inverse_of_cholesky_factor = nullptr,
    .eigh = nullptr,
    .svd = nullptr,
    .segment_sum = segment_sum,
    .softmax = softmax,
    .run = run,
    .qk_clip = qk_clip,
};

}  // namespace fusedstep
