// The part of the module `_C` that concerns the tensor table.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep {

void bind_tensor_table(pybind11::module_& m);

}  // namespace fusedstep
