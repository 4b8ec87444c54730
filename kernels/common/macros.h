// The few macros that let one source be compiled by a C++ compiler, by nvcc and by the SIMT
// harness.
#pragma once

#if defined(__CUDACC__)
#define FUSEDSTEP_HD __host__ __device__ __forceinline__
#else
#define FUSEDSTEP_HD inline __attribute__((always_inline))
#endif

// An array shared by the threads of a block. The harness (tests/simt) hands out one whose every
// access is checked for bounds, initialisation and races.
#if defined(FUSEDSTEP_SIMT)
#define FUSEDSTEP_SHARED(type, name, count) auto name = ::simt::shared<type, __COUNTER__>(count)
#else
#define FUSEDSTEP_SHARED(type, name, count) __shared__ type name[count]
#endif

// One CPU function compiled for several instruction sets; the loader picks. Contraction is off
// (-ffp-contract=off), so all of them give the same bits. Define it empty to choose by flags.
#if defined(FUSEDSTEP_CLONES)
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define FUSEDSTEP_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FUSEDSTEP_CLONES
#endif

// A CPU function whose products are exact, so that fused multiply-adds, where the instruction set
// has them, change no bit. clang knows no such attribute: there it holds for all that follows in
// the file. Define it empty to do without.
#if defined(FUSEDSTEP_EXACT_PRODUCTS)
#elif defined(__clang__)
#define FUSEDSTEP_EXACT_PRODUCTS _Pragma("clang fp contract(fast)")
#elif defined(__GNUC__)
#define FUSEDSTEP_EXACT_PRODUCTS __attribute__((optimize("fp-contract=fast")))
#else
#define FUSEDSTEP_EXACT_PRODUCTS
#endif

// A CPU function that may fuse products and sums where the instruction set can: its rounding then
// depends on that, as LAPACK's does. For what LAPACK would do elsewhere. Define it empty to do
// without.
#if defined(FUSEDSTEP_FUSED)
#elif defined(__GNUC__) && !defined(__clang__)
#define FUSEDSTEP_FUSED __attribute__((optimize("fp-contract=fast")))
#else
#define FUSEDSTEP_FUSED
#endif

// The iterations of the next loop are independent of one another.
#if defined(__GNUC__) && !defined(__clang__)
#define FUSEDSTEP_IVDEP _Pragma("GCC ivdep")
#elif defined(__clang__)
#define FUSEDSTEP_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define FUSEDSTEP_IVDEP
#endif
