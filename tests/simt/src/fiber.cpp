// Switches stacks: a few instructions on x86-64, ucontext elsewhere; AddressSanitizer is notified
// of every switch.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr std::size_t kStackSize = 64 * 1024;

// Stacks lie above a page that may not be touched, and are used again: mapping is slow.
std::vector<char*> free_stacks;

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  const std::size_t guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, guard + kStackSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory) + guard;
}

void give_back_stack(char* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStackSize);  // an abandoned fiber leaves its frames
#endif
  free_stacks.push_back(stack);
}

Fiber* entering = nullptr;

extern "C" void simt_fiber_enter() { entering->enter(); }

#if defined(SIMT_UCONTEXT)
using Context = ucontext_t;

void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }

void prepare_context(Context& context, char* stack) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackSize;
  context.uc_link = nullptr;
  makecontext(&context, simt_fiber_enter, 0);
}
#else
using Context = void*;

// Saves the registers that a function must keep, and the stack pointer in *save; then takes up
// `load`.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
  .text
  .globl simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, . - simt_switch
)");

void switch_context(Context& save, Context& load) { simt_switch(&save, load); }

void prepare_context(Context& context, char* stack) {
  // Six saved registers, the address to return to, and a null in place of a caller; at the entry
  // of a function the stack pointer is 8 past a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + kStackSize) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(&simt_fiber_enter);
  context = top;
}
#endif

Context home;
#if defined(__SANITIZE_ADDRESS__)
const void* home_stack;
std::size_t home_stack_size;
#endif

}  // namespace

Fiber::Fiber(void (*entry)(void*), void* argument)
    : entry_(entry), argument_(argument), stack_(take_stack()) {
  prepare_context(context_, stack_);
}

Fiber::~Fiber() { give_back_stack(stack_); }

void Fiber::resume() {
  entering = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackSize);
#endif
  switch_context(home, context_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &home_stack, &home_stack_size);
#endif
  entry_(argument_);
}

void Fiber::suspend([[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, home_stack, home_stack_size);
#endif
  switch_context(context_, home);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace simt
