// Tensors of torch's device type CUDA in the host's memory, for programs written for a GPU.
#pragma once

#include <pybind11/pybind11.h>

void bind_cuda_tensors(pybind11::module_& m);
