// Runs every CPU kernel and prints a line for each result: its name, which begins with that of the
// kernel's file, and a hash. tests/build/test_every_cpu.py compares what CPUs and compilers print.
#include "tests/support/every_kernel/results.h"

int main() {
  fusedstep::every_kernel::run_optim();
  fusedstep::every_kernel::run_linalg();
  fusedstep::every_kernel::run_lm_head();
}
