// What tests set in the stand-ins of cuBLAS and cuSOLVER, and what they read from them.
#pragma once

#include <cstdint>
#include <string>

namespace solvers {

struct Settings {
  bool missing = false;    // the libraries
  int64_t gives_up = -1;   // the matrix of each call that does not converge
  int64_t host_work = 16;  // bytes on the host that eigenvalues take
  int64_t calls = 0;       // that computed something
  int64_t handles = 0;     // that live
};
inline Settings settings;

}  // namespace solvers
