// The pseudo-inverses of tiny matrices on the CPU: a number of kernels/linalg/tiny_pinv.h is a
// vector with an element for each of eight matrices.
#pragma once

#include <algorithm>

#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cpu {
namespace {

constexpr int kMatrices = 8;      // doubles of the widest register
constexpr int kFew = 3;           // take less time one by one than as eight
constexpr int64_t kAtOnce = 256;  // tried by QR before the rest goes to Jacobi

typedef double Real __attribute__((vector_size(kMatrices * sizeof(double))));
using Mask = tiny::Mask<Real>;

// One thread for eight matrices, or fewer: then the last is repeated.
template <int side>
struct Eight {
  static constexpr int kRounds = side == tiny::kLargest ? 4 : 1;  // larger than the first cache

  int64_t matrix[kMatrices];
  Mask there;

  FUSEDSTEP_HD Eight(const int64_t* matrices, int64_t count) {
    for (int w = 0; w < kMatrices; ++w) {
      matrix[w] = matrices[std::min<int64_t>(w, count - 1)];
      there[w] = w < count ? -1 : 0;
    }
  }

  FUSEDSTEP_HD int first() const { return 0; }
  FUSEDSTEP_HD int step() const { return 1; }
  FUSEDSTEP_HD void sync() const {}
  FUSEDSTEP_HD Mask here() const { return there; }
  FUSEDSTEP_HD Mask of_matrix(Mask mask) const { return mask; }
  FUSEDSTEP_HD bool any(Mask mask) const {
    int64_t all = 0;
    for (int w = 0; w < kMatrices; ++w) {
      all |= mask[w];
    }
    return all != 0;
  }
  FUSEDSTEP_HD bool any_here(Mask mask) const { return any(mask); }

  template <typename Storage>
  FUSEDSTEP_HD Real load(const void* from, int64_t size, Mask place) const {
    Real value;
    for (int w = 0; w < kMatrices; ++w) {
      value[w] = static_cast<const Storage*>(from)[matrix[w] * size + place[w]];
    }
    return value;
  }
  template <typename Storage>
  FUSEDSTEP_HD void store(Storage* to, int64_t size, Mask place, Real value, Mask where) const {
    for (int w = 0; w < kMatrices; ++w) {
      if (where[w]) {
        to[matrix[w] * size + place[w]] = tiny::rounded<Storage>(value[w]);
      }
    }
  }
};

// By QR, and by Jacobi too where the caller wants that; left[w]: whether QR left the w-th of the
// matrices over. `again`: those that it left over, by Jacobi.
template <typename Storage, int side>
FUSEDSTEP_CLONES void invert(const TinyPinv& p, const int64_t* matrices, int64_t count, bool again,
                             bool* left) {
  using Work = tiny::Workspace<Real*, side>;
  alignas(64) Real memory[Work::kSize];
  const Work work(memory, 0);
  const Eight<side> team(matrices, count);
  Mask rest = team.here();
  for (int attempt = again; attempt <= (again || p.jacobi); ++attempt) {
    rest = tiny::invert<Storage, Real>(team, p, work, attempt > 0, team.here(), rest);
  }
  for (int w = 0; w < count; ++w) {
    left[w] = rest[w] != 0;
  }
}

// The same; where they are few each is done with alone, by QR and by Jacobi.
template <typename Storage, int side>
void invert_some(const TinyPinv& p, const int64_t* matrices, int64_t count, bool again,
                 bool* left) {
  if (count > kFew) {
    invert<Storage, side>(p, matrices, count, again, left);
    return;
  }
  for (int64_t w = 0; w < count; ++w) {
    tiny_pinv_alone(p, matrices[w]);
    left[w] = false;
  }
}

}  // namespace

template <typename Storage, int side>
void tiny_pinv_of(const TinyPinv& p, int64_t begin, int64_t end) {
  for (; begin < end; begin += kAtOnce) {
    int64_t matrices[kAtOnce];
    const int64_t count = std::min(kAtOnce, end - begin);
    for (int64_t i = 0; i < count; ++i) {
      matrices[i] = begin + i;
    }
    int64_t rest = 0;
    bool left[kMatrices];
    for (int64_t i = 0; i < count; i += kMatrices) {
      const int64_t some = std::min<int64_t>(kMatrices, count - i);
      invert_some<Storage, side>(p, matrices + i, some, false, left);
      for (int64_t w = 0; w < some; ++w) {
        if (left[w]) {
          matrices[rest++] = matrices[i + w];
        }
      }
    }
    if (p.jacobi) {
      continue;
    }
    for (int64_t i = 0; i < rest; i += kMatrices) {
      const int64_t some = std::min<int64_t>(kMatrices, rest - i);
      invert_some<Storage, side>(p, matrices + i, some, true, left);
    }
  }
}

}  // namespace fusedstep::cpu
