// Finds and opens cuBLAS and cuSOLVER.
#include "csrc/cuda/solver_library.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>

#include <initializer_list>
#include <stdexcept>

// XsyevBatched came with CUDA 12.6.2; setup.py looks for it before it builds this.
static_assert(CUSOLVER_VERSION >= 11701);

#define FUSEDSTEP_TEXT_OF(value) #value
#define FUSEDSTEP_TEXT(value) FUSEDSTEP_TEXT_OF(value)

namespace fusedstep::cuda {
namespace {

constexpr const char* kCublas = "libcublas.so." FUSEDSTEP_TEXT(CUBLAS_VER_MAJOR);
constexpr const char* kCusolver = "libcusolver.so." FUSEDSTEP_TEXT(CUSOLVER_VER_MAJOR);

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("fusedstep: " + what); }

// The first of `names` that opens.
void* open_first(std::initializer_list<std::string> names) {
  std::string reason;
  for (const std::string& name : names) {
    if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      return library;
    }
    reason = dlerror();
  }
  fail("no " + *(names.end() - 1) + ": " + reason);
}

// torch links cuBLAS, so that one is in the process already and its name is enough. Some builds of
// torch have loaded cuSOLVER too, others open it late, from the folder next to it: a toolkit and
// the wheels of CUDA 13 have both libraries in one folder, the wheels of CUDA 12 in neighbouring
// ones. The loader's own search comes last, since it may find another version's.
void* open_cusolver(void* cublas) {
  if (void* loaded = dlopen(kCusolver, RTLD_NOW | RTLD_NOLOAD)) {
    return loaded;
  }
  char folder[PATH_MAX];
  if (dlinfo(cublas, RTLD_DI_ORIGIN, folder) != 0) {
    fail(std::string("no folder of ") + kCublas + ": " + dlerror());
  }
  const std::string beside = std::string(folder) + "/";
  return open_first({beside + kCusolver, beside + "../../cusolver/lib/" + kCusolver, kCusolver});
}

template <typename Function>
void find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr) {
    fail(dlerror());
  }
}

SolverLibrary open_both() {
  SolverLibrary library;
  void* const cublas = open_first({kCublas});
  void* const cusolver = open_cusolver(cublas);
#define FUSEDSTEP_FIND(name) find(cublas, #name, library.name);
  FUSEDSTEP_CUBLAS_FUNCTIONS(FUSEDSTEP_FIND)
#undef FUSEDSTEP_FIND
#define FUSEDSTEP_FIND(name) find(cusolver, #name, library.name);
  FUSEDSTEP_CUSOLVER_FUNCTIONS(FUSEDSTEP_FIND)
#undef FUSEDSTEP_FIND
  const link_map* map = nullptr;
  if (dlinfo(cusolver, RTLD_DI_LINKMAP, &map) == 0) {
    library.path = map->l_name;
  }
  return library;
}

}  // namespace

const SolverLibrary& solver_library() {
  static const SolverLibrary library = open_both();
  return library;
}

}  // namespace fusedstep::cuda
