// Keeps the tensor table of a list of tensors: built once, compared with the tensors at every step.
// It holds addresses, not tensors: what the user replaces or frees is freed at once.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <utility>

#include "csrc/device.h"

namespace fusedstep {

class TensorTable {
 public:
  // One parameter: its row without the gradient, and where its elements lie.
  struct Slot {
    Row row = {};
    std::vector<int64_t> sizes, strides;
    std::vector<int64_t> roles;  // of its arrays, in the order they were listed: table.h

    Geometry geometry() const { return {sizes, strides}; }
  };

  // The parameters of an optimizer, group after group, and their arrays, parameter after parameter.
  // Parameter i has array_counts[i] of them and stands at positions[i] in the optimizer's list;
  // first_elements[i] is where its elements begin in the tensor that it is a part of; `roles` says
  // what each array is for.
  // Refused, with the table as it was: wrong dtypes, devices, lengths, and elements with gaps.
  void assign(const char* function, const Tensors& params, const Tensors& arrays,
              const std::vector<int64_t>& roles, const std::vector<int64_t>& array_counts,
              const std::vector<int64_t>& group_sizes, const std::vector<int64_t>& positions,
              const std::vector<int64_t>& first_elements);

  // Tensors that a rule without state rewrites or that are only read: gradients to be clipped.
  // At least one.
  void assign(const char* function, const Tensors& tensors);

  // Takes over the addresses of the gradients; `missing`, ascending, are the parameters that have
  // none. False, and nothing changed, where a gradient's layout, device or dtype does not fit: then
  // the caller has to assign anew.
  bool refresh(const Tensors& grads, const std::vector<int64_t>& missing);

  // The gradients that parameters have, and the numbers of the parameters that have none.
  using Gradients = std::pair<pybind11::list, pybind11::list>;

  // What Python asks at every step, in one walk over its lists, which have an entry for each
  // parameter: whether parameters and arrays are where and what they were when they were assigned;
  // if they are, takes over the gradients as `refresh` does. Nothing where something differs.
  //
  // A tensor can be exchanged for another, and its memory, shape and dtype can change while it
  // stays the same object: `x.data = y`, `set_`, `resize_`. No counter tells of the latter, so each
  // tensor is viewed anew; a view tells of both. Of a gradient nothing has to be as it was, but it
  // must lie as its parameter does, and must not be a lazy negation or zero.
  //
  // `grads` is a list with None for a gradient that does not exist, or itself None: parameters then
  // have gradients of their own. Arrays are entries of dictionaries: those of parameter i are in
  // states[rows[i]] under the keys names[i], in the order of assignment. `sharded`: they may be
  // DTensors, whose local parts count.
  std::optional<Gradients> open(const pybind11::list& params, const pybind11::object& grads,
                                const pybind11::list& states, const pybind11::list& rows,
                                const pybind11::list& names, bool sharded);

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
  // Of gradients that exist: the numbers of their slots, their dtypes and addresses.
  struct Active {
    std::vector<int32_t> slots;
    std::vector<Dtype> dtypes;
    std::vector<void*> addresses;

    explicit Active(size_t count) {
      slots.reserve(count);
      dtypes.reserve(count);
      addresses.reserve(count);
    }
    void add(size_t slot, Dtype dtype, void* address) {
      slots.push_back(static_cast<int32_t>(slot));
      dtypes.push_back(dtype);
      addresses.push_back(address);
    }
  };

  void take(std::vector<Slot> slots, const Tensors& tensors);
  void take_over(const Active& active);
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
