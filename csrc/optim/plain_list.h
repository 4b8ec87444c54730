// A list of Python tensors that are what their memory says, read without a look at each of them in
// Python and without boxing them for the dispatcher: only addresses, sizes and dtypes count.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "csrc/device.h"
#include "csrc/dlpack.h"

namespace fusedstep {

class PlainList {
 public:
  // Nothing where the list is empty or one of its tensors needs more care: a subclass, another
  // device than the first one's, a dtype that kernels do not take, elements with gaps, a lazy
  // negation or zero, no memory. Whoever gets nothing looks at each of them.
  static std::optional<PlainList> of(const pybind11::list& tensors);

  // The same of the gradients that parameters have, to be written. Nothing also where a parameter
  // is no plain tensor, and where two gradients share memory.
  static std::optional<PlainList> of_gradients(const pybind11::list& parameters);

  // Each names the same memory as parameter and as gradient.
  const TableData& data() const { return data_; }
  const pybind11::list& tensors() const { return tensors_; }
  bool is_on_device_of(const Tensor& tensor) const;

 private:
  bool read(bool apart);

  pybind11::list tensors_;  // held until the kernels have been queued
  dlpack::Device device_ = {};
  TableData data_;
};

}  // namespace fusedstep
