// Keeps the tensor table of a list of tensors: built once, compared with the tensors at every step.
// It holds addresses, not tensors: what the user replaces or frees is freed at once.
#pragma once

#include <pybind11/pybind11.h>

#include "csrc/device.h"

namespace fusedstep {

class TensorTable {
 public:
  // One parameter: its row without the gradient, and where its elements lie.
  struct Slot {
    Row row = {};
    std::vector<int64_t> sizes, strides;
    std::vector<int64_t> roles;  // of its arrays, in the order they were listed: table.h
  };

  // The parameters of an optimizer, group after group, and their arrays, parameter after parameter.
  // Parameter i has array_counts[i] of them and stands at positions[i] in the optimizer's list;
  // `roles` says what each array is for.
  // Refused, with the table as it was: wrong dtypes, devices, lengths, and elements with gaps.
  void assign(const char* function, const Tensors& params, const Tensors& arrays,
              const std::vector<int64_t>& roles, const std::vector<int64_t>& array_counts,
              const std::vector<int64_t>& group_sizes, const std::vector<int64_t>& positions);

  // Tensors that a rule without state rewrites or that are only read: gradients to be clipped.
  // At least one.
  void assign(const char* function, const Tensors& tensors);

  // Takes over the addresses of the gradients; `missing`, ascending, are the parameters that have
  // none. False, and nothing changed, where a gradient's layout, device or dtype does not fit: then
  // the caller has to assign anew.
  bool refresh(const Tensors& grads, const std::vector<int64_t>& missing);

  // Whether parameters and arrays are where and what they were when they were assigned. Arrays are
  // entries of the dictionaries in `states`, one for each parameter; `names` has tuples of their
  // keys in the order of assignment. `sharded`: entries may be DTensors, whose local parts count.
  bool fits(const pybind11::list& params, const pybind11::list& states, const pybind11::list& names,
            bool sharded) const;

  const TableData& data() const { return data_; }
  // By group: how many states its parameters have; below 0 where it has no parameters.
  const std::vector<int64_t>& state_counts() const { return state_counts_; }
  bool empty() const { return data_.layout.rows.empty(); }
  bool is_on_device_of(const Tensor& tensor) const {
    return on_gpu_ == tensor.is_cuda() && device_index_ == tensor.get_device();
  }

  // Where `device` keeps its copy between ops. What another device kept is dropped.
  std::unique_ptr<DeviceCopy>* copy_on(const Device& device);

 private:
  void take(std::vector<Slot> slots, const Tensors& tensors);
  void lay_out(const std::vector<int32_t>& active, const std::vector<Dtype>& grad_dtypes);

  std::vector<Slot> slots_;
  bool on_gpu_ = false;  // which all are, as the next
  int32_t device_index_ = 0;
  std::vector<int64_t> state_counts_;
  std::vector<int32_t> active_;     // slots that have a gradient, in order
  std::vector<Dtype> grad_dtypes_;  // of the active slots
  TableData data_;                  // of the active slots
  const Device* device_ = nullptr;  // whose copy it is
  std::unique_ptr<DeviceCopy> copy_;
};

}  // namespace fusedstep
