// What other files add to the Python module _C.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep {

void bind_device(pybind11::module_& m);        // csrc/device.cpp
void bind_plain_list(pybind11::module_& m);    // csrc/optim/plain_list.cpp
void bind_step_plan(pybind11::module_& m);     // csrc/optim/step.cpp
void bind_tensor_table(pybind11::module_& m);  // csrc/optim/tensor_table.cpp

}  // namespace fusedstep
