// A fiber: a function with a stack of its own that can be left and entered again.
#pragma once

#include <cstddef>

// -DSIMT_UCONTEXT tries on x86-64 what other machines use.
#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // `entry` must not return: it ends with suspend().
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();            // from the operating-system thread's own stack: runs until suspend()
  void suspend(bool last);  // from inside; `last`: it will not be resumed
  void enter();             // the first thing that runs on the stack

 private:
  void (*entry_)(void*);
  void* argument_;
  char* stack_;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if defined(SIMT_UCONTEXT)
  ucontext_t context_;
#else
  void* context_;
#endif
};

}  // namespace simt
