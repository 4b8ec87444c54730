// Which tensors share memory: the question that the op find_overlap answers exactly, for spans.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fusedstep {

// From the address of a tensor's first byte to that of its last.
struct Span {
  int64_t first, last;
};

// Whether no two spans share a byte. Where tensors have gaps, false says nothing.
inline bool are_apart(std::vector<Span> spans) {
  std::ranges::sort(spans, {}, &Span::first);
  return std::ranges::adjacent_find(
             spans, [](const Span& a, const Span& b) { return b.first <= a.last; }) == spans.end();
}

}  // namespace fusedstep
