// A rule's parameter groups as plain bytes, for the table that does not know the rule.
#pragma once

#include <cstddef>
#include <vector>

namespace fusedstep {

struct GroupBytes {
  const void* data;
  size_t bytes;

  template <typename Group>
  GroupBytes(const std::vector<Group>& groups)  // implicit: a view
      : data(groups.data()), bytes(groups.size() * sizeof(Group)) {}
};

}  // namespace fusedstep
