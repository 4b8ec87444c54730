// The pseudo-inverse of one tiny matrix on the CPU, whose columns lie in one piece each: vector
// instructions take several elements of a column, while those of tiny_pinv_eight.h take the same
// element of eight matrices.
#pragma once

#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cpu {
namespace {

// One thread for one matrix.
struct Alone {
  static constexpr int kRounds = 1;

  int64_t matrix;

  FUSEDSTEP_HD int first() const { return 0; }
  FUSEDSTEP_HD int step() const { return 1; }
  FUSEDSTEP_HD void sync() const {}
  FUSEDSTEP_HD bool here() const { return true; }
  FUSEDSTEP_HD bool of_matrix(bool mask) const { return mask; }
  FUSEDSTEP_HD bool any(bool mask) const { return mask; }
  FUSEDSTEP_HD bool any_here(bool mask) const { return mask; }

  template <typename Storage>
  FUSEDSTEP_HD double load(const void* from, int64_t size, int place) const {
    return static_cast<const Storage*>(from)[matrix * size + place];
  }
  template <typename Storage>
  FUSEDSTEP_HD void store(Storage* to, int64_t size, int place, double value, bool where) const {
    if (where) {
      to[matrix * size + place] = tiny::rounded<Storage>(value);
    }
  }
};

template <typename Storage, int side>
FUSEDSTEP_CLONES void invert(const TinyPinv& p, int64_t matrix) {
  using Work = tiny::Workspace<double*, side, true>;
  alignas(64) double memory[Work::kSize];
  const Work work(memory, 0);
  const Alone team{matrix};
  bool open = true;
  for (int attempt = 0; attempt < 2 && (attempt == 0 || open || p.jacobi); ++attempt) {
    open = tiny::invert<Storage, double>(team, p, work, attempt > 0, true, open);
  }
}

}  // namespace

template <typename Storage, int side>
void tiny_pinv_alone_of(const TinyPinv& p, int64_t matrix) {
  invert<Storage, side>(p, matrix);
}

}  // namespace fusedstep::cpu
