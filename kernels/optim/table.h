// The tensor table: what one pass over any number of tensors needs to know, flat, for both devices.
#pragma once

#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep {

// Work is cut into chunks of this many elements; no chunk spans two tensors, and an empty tensor
// has one empty chunk, so that it takes part like any other (its step count advances too).
// The chunk size is part of the definition of the global norm: changing it changes bits.
constexpr int64_t kChunkSize = 32768;

constexpr int kMaxStates = 3;

// What an array beside parameter and gradient is for. python/fusedstep/optim/arrays.py says the
// same. The type of an array's elements says how it is to be read: see Row.
enum Role : int {
  kState = 0,                // and the next two: the rule's states, in its order
  kScale = kMaxStates,       // and the next two: a float32 for each block of an 8-bit state
  kMaster = 2 * kMaxStates,  // float32, or what a bfloat16 parameter lacks of it (remainder.h)
  kAverage,                  // the parameter's moving average, in the compute type
  kStep,                     // one float32: updates done so far
  kNumRoles,
};

// One tensor that takes part. Data are in storage order: all arrays of a row share one layout.
struct Row {
  void* param;
  void* arrays[kNumRoles];  // null where the tensor has none
  int64_t size;             // elements
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

}  // namespace fusedstep
