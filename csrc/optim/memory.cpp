// The op find_overlap: which tensors share memory, decided from addresses, sizes and strides.
#include "csrc/optim/memory.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <span>
#include <tuple>

#include "csrc/checks.h"
#include "csrc/device.h"

namespace fusedstep {
namespace {

struct Axis {
  int64_t size, stride;  // in bytes
};

// The bytes of a tensor: first + a sum of index * stride over the axes. The strides descend; the
// last axis, of stride 1, runs over the bytes of neighbouring elements.
struct Footprint {
  int64_t tensor;  // its place in the list
  int64_t first;   // an address
  std::vector<Axis> axes;

  int64_t last() const {
    int64_t last = first;
    for (const Axis& axis : axes) {
      last += (axis.size - 1) * axis.stride;
    }
    return last;
  }
};

using Footprints = std::vector<Footprint>;

Footprint footprint_of(const Tensor& tensor, int64_t index) {
  const auto bytes = static_cast<int64_t>(tensor.element_size());
  std::vector<Axis> axes{{bytes, 1}};
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) {
      axes.push_back({tensor.size(d), tensor.stride(d) * bytes});
    }
  }
  std::ranges::stable_sort(axes, std::greater{}, &Axis::stride);
  std::vector<Axis> merged;
  for (const Axis& axis : axes) {
    if (!merged.empty() && merged.back().stride == axis.size * axis.stride) {
      merged.back() = {merged.back().size * axis.size, axis.stride};
    } else {
      merged.push_back(axis);
    }
  }
  return {index, reinterpret_cast<int64_t>(tensor.data_ptr()), merged};
}

// Whether there are integers x, each within its bounds, whose sum of x * stride is `target`.
// The search tries the largest stride first. Few of its values can then be made good by the rest,
// so it visits about as many nodes as there are terms, or rows where two tensors have strides that
// do not divide each other.
class Equation {
 public:
  void add(int64_t stride, int64_t low, int64_t high) { terms_.push_back({stride, low, high}); }

  bool has_solution(int64_t target) {
    std::ranges::sort(terms_, std::greater{}, &Term::stride);
    rests_.assign(terms_.size() + 1, {0, 0, 0});
    for (size_t k = terms_.size(); k-- > 0;) {
      const Term& term = terms_[k];
      Rest& rest = rests_[k] = rests_[k + 1];
      rest.low += term.low * term.stride;
      rest.high += term.high * term.stride;
      if (k + 1 < terms_.size()) {
        rest.divisor = std::gcd(rest.divisor, term.stride);
      }
    }
    return solve(0, target);
  }

 private:
  struct Term {
    int64_t stride, low, high;
  };
  struct Rest {  // the terms k, k + 1, ...
    int64_t low, high;
    int64_t divisor;  // of all their strides but the last; 0 if there is only one
  };

  static int64_t floor_of(int64_t a, int64_t b) { return a / b - (a % b < 0); }
  static int64_t ceil_of(int64_t a, int64_t b) { return -floor_of(-a, b); }

  bool solve(size_t k, int64_t target) const {
    const Rest& rest = rests_[k];
    if (target < rest.low || target > rest.high) {
      return false;
    }
    if (k == terms_.size()) {
      return true;
    }
    if (rest.divisor > 1) {  // all but the last term add up to one of its multiples
      const int64_t low = target - terms_.back().high * terms_.back().stride;
      const int64_t high = target - terms_.back().low * terms_.back().stride;
      if (floor_of(high, rest.divisor) * rest.divisor < low) {
        return false;
      }
    }
    const auto [stride, low, high] = terms_[k];
    const int64_t from = std::max(low, ceil_of(target - rests_[k + 1].high, stride));
    const int64_t to = std::min(high, floor_of(target - rests_[k + 1].low, stride));
    for (int64_t x = from; x <= to; ++x) {
      if (solve(k + 1, target - x * stride)) {
        return true;
      }
    }
    return false;
  }

  std::vector<Term> terms_;
  std::vector<Rest> rests_;
};

// Whether two indices lead to the same byte: a sum of differences of indices is 0. One of them is
// the first that is not 0, say above 0.
bool overlaps_itself(const Footprint& a) {
  if (a.axes.back().stride == 0) {  // expanded
    return true;
  }
  for (size_t k = 0; k < a.axes.size(); ++k) {
    const auto [size, stride] = a.axes[k];
    Equation equation;
    equation.add(stride, 1, size - 1);
    for (size_t l = k + 1; l < a.axes.size(); ++l) {
      equation.add(a.axes[l].stride, 1 - a.axes[l].size, a.axes[l].size - 1);
    }
    if (equation.has_solution(0)) {
      return true;
    }
  }
  return false;
}

bool overlap(const Footprint& a, const Footprint& b) {
  Equation equation;
  for (const Axis& axis : a.axes) {
    const auto same = std::ranges::find(b.axes, axis.stride, &Axis::stride);
    equation.add(axis.stride, same == b.axes.end() ? 0 : 1 - same->size, axis.size - 1);
  }
  for (const Axis& axis : b.axes) {
    if (std::ranges::find(a.axes, axis.stride, &Axis::stride) == a.axes.end()) {
      equation.add(axis.stride, 1 - axis.size, 0);
    }
  }
  return equation.has_solution(b.first - a.first);
}

// Sorts by address and calls f on each part of the list whose spans, from a first byte to a last,
// form one piece. Stops where f returns false.
template <typename F>
bool for_pieces(Footprints& list, F&& f) {
  std::ranges::sort(list, {}, &Footprint::first);
  for (size_t begin = 0, end; begin < list.size(); begin = end) {
    int64_t last = list[begin].last();
    for (end = begin + 1; end < list.size() && list[end].first <= last; ++end) {
      last = std::max(last, list[end].last());
    }
    if (end - begin > 1 && !f(std::span(list).subspan(begin, end - begin))) {
      return false;
    }
  }
  return true;
}

// Whether all of these are apart already by where they lie within one period of the largest stride
// that they share: column blocks of one matrix, any number of them. False says nothing.
bool apart_within_period(std::span<const Footprint> piece) {
  const int64_t period = piece[0].axes[0].stride;
  Footprints within;
  for (const Footprint& a : piece) {
    if (a.axes.size() < 2 || a.axes[0].stride != period) {
      return false;
    }
    within.push_back(
        {a.tensor, (a.first - piece[0].first) % period, {a.axes.begin() + 1, a.axes.end()}});
    if (within.back().last() >= period) {
      return false;
    }
  }
  return for_pieces(within, apart_within_period);
}

// Whether all fill their spans and these are apart: the usual case, told without footprints.
bool are_blocks_apart(const Tensors& tensors) {
  std::vector<Span> spans;
  spans.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    if (!is_strided(tensor) || !is_gapless(tensor)) {
      return false;
    }
    const auto first = reinterpret_cast<int64_t>(tensor.data_ptr());
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    if (bytes > 0 && first != 0) {
      spans.push_back({first, first + bytes - 1});
    }
  }
  return are_apart(std::move(spans));
}

// (i, i) where tensor i overlaps itself, (i, j) with i < j where two share memory, or (-1, -1).
// Tensors without memory (meta) share none.
std::tuple<int64_t, int64_t> find_overlap(const Tensors& tensors) {
  if (are_blocks_apart(tensors)) {
    return {-1, -1};
  }
  Footprints list;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    Arg("find_overlap", "tensors", tensors[i], index).must(is_strided(tensors[i]), "be dense");
    if (tensors[i].numel() > 0 && tensors[i].data_ptr() != nullptr) {
      list.push_back(footprint_of(tensors[i], index));
      if (overlaps_itself(list.back())) {
        return {index, index};
      }
    }
  }
  std::tuple<int64_t, int64_t> found{-1, -1};
  for_pieces(list, [&](std::span<const Footprint> piece) {
    if (apart_within_period(piece)) {
      return true;
    }
    for (size_t i = 0; i < piece.size(); ++i) {
      const int64_t last = piece[i].last();
      for (size_t j = i + 1; j < piece.size() && piece[j].first <= last; ++j) {
        if (overlap(piece[i], piece[j])) {
          found = std::minmax(piece[i].tensor, piece[j].tensor);
          return false;
        }
      }
    }
    return true;
  });
  return found;
}

}  // namespace
}  // namespace fusedstep

STABLE_TORCH_LIBRARY_FRAGMENT(fusedstep, m) {
  // Indices of two tensors that share memory, the same one twice where it is two elements of one
  // tensor, or -1 twice.
  m.def("find_overlap(Tensor[] tensors) -> (int, int)");
}

STABLE_TORCH_LIBRARY_IMPL(fusedstep, CompositeExplicitAutograd, m) {
  m.impl("find_overlap", TORCH_BOX(&fusedstep::find_overlap));
}

FUSEDSTEP_IMPL_LAZY(m) { m.impl("find_overlap", TORCH_BOX(&fusedstep::find_overlap)); }
