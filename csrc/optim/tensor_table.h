// Keeps the tensor table of a list of tensors: built once, compared with the tensors at every step.
#pragma once

#include "csrc/device.h"

namespace fusedstep {

class TensorTable {
 public:
  // One parameter: its tensors, and its row without the gradient.
  struct Slot {
    Tensor param;
    Tensors arrays;
    std::vector<int64_t> roles;  // of the arrays: kernels/optim/table.h
    Row row;
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

  // Compares everything with what the table says and takes over the addresses of the gradients;
  // `missing`, ascending, are the parameters that have none. False, and nothing changed, where a
  // parameter or state has moved or a gradient's layout, device or dtype does not fit: then the
  // caller has to assign anew.
  bool refresh(const Tensors& grads, const std::vector<int64_t>& missing);

  const TableData& data() const { return data_; }
  const std::vector<Slot>& slots() const { return slots_; }
  // By group: how many states its parameters have; below 0 where it has no parameters.
  const std::vector<int64_t>& state_counts() const { return state_counts_; }
  bool empty() const { return data_.layout.rows.empty(); }

  // Where `device` keeps its copy between ops. What another device kept is dropped.
  std::unique_ptr<DeviceCopy>* copy_on(const Device& device);

 private:
  bool unmoved(const Slot& slot) const;
  void lay_out(const std::vector<int32_t>& active, const std::vector<Dtype>& grad_dtypes);

  std::vector<Slot> slots_;
  std::vector<int64_t> state_counts_;
  std::vector<int32_t> active_;     // slots that have a gradient, in order
  std::vector<Dtype> grad_dtypes_;  // of the active slots
  TableData data_;                  // of the active slots
  const Device* device_ = nullptr;  // whose copy it is
  std::unique_ptr<DeviceCopy> copy_;
};

}  // namespace fusedstep
