// Sums of rows by id as an order of additions, so that every device and thread count gives the same
// bits.
//
// clang-format off
//   position p of the sorted ids  ->  piece p / 64
//   the rows of an id in a piece  ->  in float64, from zero, row after row
//   an id                         ->  the sum it had, then those of its pieces, from the first on
// clang-format on
//
// No piece waits for another: a piece adds to the sum of every id that begins in it, and keeps what
// it has of an id that began before for a second pass, in which the piece where an id begins adds
// what later ones kept. So each sum has one writer at a time, for any ids, and an id that all rows
// share is shared out like any other.
#pragma once

#include <cstdint>

#include "kernels/common/dtypes.h"

namespace fusedstep {

constexpr int64_t kPiece = 64;

// `count` rows: the one at position p is row order[p] of `rows`, and its id is ids[p].
struct Segments {
  const void* rows;
  Dtype dtype;
  int64_t stride;  // elements from a row to the next
  int64_t width;   // elements of a row
  const int64_t* order;
  const int64_t* ids;  // ascending
  int64_t count;
  double* sums;   // [ids, width]
  double* heads;  // [pieces, width]: of ids that began before the piece
};

FUSEDSTEP_HD int64_t pieces_of(int64_t count) { return (count + kPiece - 1) / kPiece; }
FUSEDSTEP_HD int64_t piece_begin(int64_t piece) { return piece * kPiece; }
FUSEDSTEP_HD int64_t piece_end(const Segments& s, int64_t piece) {
  const int64_t end = piece_begin(piece + 1);
  return end < s.count ? end : s.count;
}

// Whether the id at a piece's begin began before.
FUSEDSTEP_HD bool is_continued(const Segments& s, int64_t piece) {
  const int64_t begin = piece_begin(piece);
  return begin > 0 && s.ids[begin - 1] == s.ids[begin];
}

// The number of later pieces that kept rows of the id with which `piece` ends; 0 where that id
// began before `piece`, which then has nothing to collect.
FUSEDSTEP_HD int64_t heads_to_collect(const Segments& s, int64_t piece) {
  const int64_t id = s.ids[piece_end(s, piece) - 1];
  if (is_continued(s, piece) && s.ids[piece_begin(piece)] == id) {
    return 0;
  }
  int64_t heads = 0;
  for (int64_t p = piece_begin(piece + 1); p < s.count && s.ids[p] == id; p += kPiece) {
    ++heads;
  }
  return heads;
}

namespace cpu {

// Pieces [begin, end). All pieces have been summed before the first collects.
void sum_pieces(const Segments& segments, int64_t begin, int64_t end);
void collect_heads(const Segments& segments, int64_t begin, int64_t end);

}  // namespace cpu

}  // namespace fusedstep
