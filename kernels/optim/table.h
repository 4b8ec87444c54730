// The tensor table: what one pass over any number of tensors needs to know, flat, for both devices;
// and how it is laid out on the host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/common/dtypes.h"

namespace fusedstep {

// Work is cut into chunks of this many elements; no chunk spans two tensors, and an empty tensor
// has one empty chunk, so that it takes part like any other (its step count advances too).
// The chunk size is part of the definition of the global norm: changing it changes bits.
constexpr int64_t kChunkSize = 32768;

constexpr int kMaxStates = 3;

// What an array other than parameter and gradient is for; Python has the numbers from _C.ROLES. The
// type of an array's elements says how to read it: see Row.
enum Role : int {
  kState = 0,                // and the next two: the rule's states, in its order
  kScale = kMaxStates,       // and the next two: a float32 for each block of an 8-bit state
  kMaster = 2 * kMaxStates,  // float32, or what a bfloat16 lacks of it (remainder.h, correction.h)
  kAverage,                  // the parameter's moving average, in the compute type
  kStep,                     // one float32: updates done so far
  kNumRoles,
};

// One tensor that takes part. Data are in storage order: all arrays of a row share one layout.
struct Row {
  void* param;
  void* arrays[kNumRoles];  // null where the tensor has none
  int64_t size;             // elements
  int64_t first_element;    // in what they are a part of: a tensor, or a block of its rows (Muon);
                            // random numbers count from there
  int64_t first_chunk;      // of the table, in the order of the rows
  int64_t first_partial;    // of the norm's partial results, in the order the caller listed
  int32_t group;
  int32_t position;  // in the optimizer's list of parameters: one key of the random numbers
  Dtype param_dtype;
  Dtype grad_dtype;
  Dtype dtypes[kNumRoles];  // of the arrays

  FUSEDSTEP_HD float* step() const { return static_cast<float*>(arrays[kStep]); }
};

// Pointers into host memory for the CPU, into device memory for a GPU.
struct Table {
  const Row* rows;
  void* const* grads;           // [rows], apart because gradients move between steps
  const int32_t* row_of_chunk;  // [num_chunks]
  const void* groups;           // [num_groups] of GroupOf<Rule>
  int64_t num_chunks;
};

struct Chunk {
  int32_t row;
  int64_t begin;    // first element, within its tensor
  int32_t size;     // elements
  int64_t partial;  // where the norm keeps this chunk's partial result
};

FUSEDSTEP_HD int64_t chunks_of(int64_t size) {
  return size > 0 ? (size + kChunkSize - 1) / kChunkSize : 1;
}

FUSEDSTEP_HD Chunk locate(const Table& table, int64_t chunk) {
  const int32_t index = table.row_of_chunk[chunk];
  const Row& row = table.rows[index];
  const int64_t ordinal = chunk - row.first_chunk;
  const int64_t begin = ordinal * kChunkSize;
  const int64_t left = row.size - begin;
  return {index, begin, static_cast<int32_t>(left < kChunkSize ? left : kChunkSize),
          row.first_partial + ordinal};
}

// --- the layout on the host: rows sorted by how they are stored, chunks numbered, a launch each
// ---

// A run of chunks that one kernel takes: rows computed in the same type and stored in it
// throughout, or not.
struct Launch {
  Dtype computed;
  bool uniform;
  int64_t first_chunk;
  int64_t num_chunks;
};

struct Layout {
  std::vector<Row> rows;
  std::vector<int32_t> order;  // rows[i] was listed as number order[i]
  std::vector<int32_t> row_of_chunk;
  std::vector<int64_t> cost;  // [chunks + 1] work before each chunk, to share it out evenly
  std::vector<Launch> launches;
  int64_t num_chunks() const { return static_cast<int64_t>(row_of_chunk.size()); }
};

// Whether parameter, gradient and states are all stored in the type they are computed in.
inline bool is_uniform(const Row& row) {
  const Dtype computed = compute_dtype(row.param_dtype);
  bool uniform = row.param_dtype == computed && row.grad_dtype == computed;
  for (int k = 0; k < kMaxStates; ++k) {
    const Dtype state = row.dtypes[kState + k];
    uniform = uniform && (state == computed || state == Dtype::kNone);
  }
  return uniform;
}

// Work of a chunk beyond its elements, in elements: look-ups, coefficients, the end of the loops.
constexpr int64_t kChunkOverhead = 512;

// `listed`: rows in the caller's order, with everything set but first_chunk and first_partial.
inline Layout make_layout(const std::vector<Row>& listed) {
  Layout layout;
  std::vector<int64_t> first_partial(listed.size());
  layout.order.reserve(listed.size());
  int64_t chunks = 0;
  for (size_t i = 0; i < listed.size(); ++i) {
    layout.order.push_back(static_cast<int32_t>(i));
    first_partial[i] = chunks;
    chunks += chunks_of(listed[i].size);
  }
  const auto kernel = [&](int32_t i) {
    return std::pair(compute_dtype(listed[i].param_dtype), is_uniform(listed[i]));
  };
  const auto before = [&](int32_t a, int32_t b) { return kernel(a) < kernel(b); };
  if (!std::is_sorted(layout.order.begin(), layout.order.end(), before)) {
    std::stable_sort(layout.order.begin(), layout.order.end(), before);
  }

  layout.rows.reserve(listed.size());
  layout.row_of_chunk.reserve(chunks);
  layout.cost.reserve(chunks + 1);
  layout.cost.push_back(0);
  int32_t last = 0;
  for (const int32_t listed_as : layout.order) {
    Row row = listed[listed_as];
    row.first_chunk = layout.num_chunks();
    row.first_partial = first_partial[listed_as];
    if (layout.rows.empty() || kernel(listed_as) != kernel(last)) {
      const auto [computed, uniform] = kernel(listed_as);
      layout.launches.push_back({computed, uniform, row.first_chunk, 0});
    }
    last = listed_as;
    const int64_t row_chunks = chunks_of(row.size);
    layout.launches.back().num_chunks += row_chunks;
    for (int64_t k = 0; k < row_chunks; ++k) {
      layout.row_of_chunk.push_back(static_cast<int32_t>(layout.rows.size()));
      const int64_t size = std::min(kChunkSize, row.size - k * kChunkSize);
      layout.cost.push_back(layout.cost.back() + size + kChunkOverhead);
    }
    layout.rows.push_back(row);
  }
  return layout;
}

// A place in the work: so many elements into a chunk.
struct Position {
  int64_t chunk;
  int32_t element = 0;
};

constexpr int64_t kShareUnit = 256;

// Where the share of worker `worker` of `workers` begins; shares are even in work. Within a chunk
// they begin at a multiple of 256 elements, so that neither a cache line nor a block of an 8-bit
// state belongs to two workers.
inline Position share_begin(const Layout& layout, int64_t worker, int64_t workers) {
  const auto target =
      static_cast<int64_t>(static_cast<double>(layout.cost.back()) * worker / workers);
  const auto after = std::upper_bound(layout.cost.begin(), layout.cost.end(), target);
  const int64_t chunk = after - layout.cost.begin() - 1;
  if (chunk >= layout.num_chunks()) {
    return {layout.num_chunks()};
  }
  const int64_t size = layout.cost[chunk + 1] - layout.cost[chunk] - kChunkOverhead;
  const int64_t element = (target - layout.cost[chunk]) / kShareUnit * kShareUnit;
  return element == 0 || element < size ? Position{chunk, static_cast<int32_t>(element)}
                                        : Position{chunk + 1};
}

}  // namespace fusedstep
