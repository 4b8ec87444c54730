// The facts of this build as a Python dict, for the two modules that are built together.
#pragma once

#include <pybind11/pybind11.h>

#include "build_facts_table.h"  // written by setup.py

#if defined(__clang__)
#define FUSEDSTEP_COMPILER __VERSION__
#else
#define FUSEDSTEP_COMPILER "GCC " __VERSION__
#endif

inline pybind11::dict build_facts() {
  pybind11::dict facts;
  for (const auto& [name, value] : kBuildFacts) facts[name] = value;
  facts["compiler"] = FUSEDSTEP_COMPILER;
  return facts;
}
