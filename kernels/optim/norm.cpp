// The norm pass on the CPU: the order of kernels/optim/norm.h, 256 lanes at a time, in registers
// where there are enough of them.
#include "kernels/optim/norm.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/common/pages.h"
#include "kernels/common/reduce.h"

namespace fusedstep::cpu {
namespace {

constexpr int kWords = kLanes / 2;  // of two bfloat16

// Adds a row to the lanes; the `first` begins them.
template <Norm norm, bool first, typename T, typename Storage>
FUSEDSTEP_HD void add_row(const Storage* x, T scale, T* lanes) {
  for (int l = 0; l < kLanes; ++l) {
    lanes[l] = accumulate<norm>(first ? 0 : lanes[l], load_as<T>(x[l]) * scale);
  }
}

// Two bfloat16 are read as one word, of which a shift makes the even lane and a mask the odd one:
// no number moves within its vector, which halves the instructions of widening. The even lanes come
// before the odd ones.
template <Norm norm, bool first>
FUSEDSTEP_HD void add_row(const BFloat16* x, float scale, float* lanes) {
  static_assert(std::endian::native == std::endian::little, "a word's low half comes first");
  float* const odd = lanes + kWords;
  for (int w = 0; w < kWords; ++w) {
    uint32_t word;
    std::memcpy(&word, x + 2 * w, sizeof(word));
    lanes[w] = accumulate<norm>(first ? 0 : lanes[w], bit_cast<float>(word << 16) * scale);
    odd[w] = accumulate<norm>(first ? 0 : odd[w], bit_cast<float>(word & 0xffff0000u) * scale);
  }
}

// Even and odd lanes meet in the last fold.
template <Norm norm, typename Storage, typename T>
FUSEDSTEP_HD T fold_lanes(T* lanes) {
  constexpr auto kFold = combine<norm, T>;
  if constexpr (std::is_same_v<Storage, BFloat16>) {
    const T even = fold_by_halves<kWords>(lanes, kFold);
    return kFold(even, fold_by_halves<kWords>(lanes + kWords, kFold));
  } else {
    return fold_by_halves<kLanes>(lanes, kFold);
  }
}

// What a last row lacks is made up by zeros, which change no lane.
template <Norm norm, typename T, typename Storage>
FUSEDSTEP_HD T sum_strip(const Storage* x, int n, T scale) {
  alignas(64) T lanes[kLanes];
  const Storage* const end = x + n;
  if (n < kLanes) {
    std::fill(lanes, lanes + kLanes, T{0});
  } else {
    add_row<norm, true>(x, scale, lanes);
    x += kLanes;
  }
  for (; end - x >= kLanes; x += kLanes) {
    add_row<norm, false>(x, scale, lanes);
  }
  if (x < end) {
    Storage row[kLanes] = {};
    std::copy(x, end, row);
    add_row<norm, false>(row, scale, lanes);
  }
  return fold_lanes<norm, Storage>(lanes);
}

template <Norm norm, typename T, typename Storage>
FUSEDSTEP_CLONES T sum_chunk(const Storage* x, int n, T scale) {
  const int strip = rows_of_strip(n) * kLanes;
  T total = 0;
  for (; n > 0; n -= strip, x += strip) {
    announce_pages(x + strip, strip);
    total = combine<norm>(total, sum_strip<norm>(x, std::min(strip, n), scale));
  }
  return total;
}

template <Norm norm, typename Storage>
double chunk_partial(const Storage* x, int n) {
  using T = Compute<Storage>;
  const double partial = sum_chunk<norm>(x, n, T{1});
  if (is_finite(partial) || norm == Norm::kInf || std::is_same_v<T, double>) {
    return partial;
  }
  return undo_rescue<norm>(sum_chunk<norm>(x, n, rescue_scale<T>()));
}

}  // namespace

void norm_chunks(const Table& table, Norm norm, int64_t begin, int64_t end, double* partials) {
  with_norm(norm, [&](auto n) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk chunk = locate(table, c);
      with_storage(table.rows[chunk.row].grad_dtype, [&](auto storage) {
        const auto* const grad = static_cast<const decltype(storage)*>(table.grads[chunk.row]);
        partials[chunk.partial] = chunk_partial<n.value>(grad + chunk.begin, chunk.size);
      });
    }
  });
}

double fold_partials(Norm norm, const double* partials, int64_t count, const float* grad_scale) {
  double lanes[kLanes] = {};
  return with_norm(norm, [&](auto n) {
    for (int64_t c = 0; c < count; ++c) {
      double& lane = lanes[c % kLanes];
      lane = combine<n.value>(lane, partials[c]);
    }
    return finish<n.value>(fold_lanes<n.value, double>(lanes),
                           grad_scale != nullptr ? *grad_scale : 1);
  });
}

}  // namespace fusedstep::cpu
