// A product of small float64 matrices by a warp, in the tensor cores.
//
// How A [16, 8], B [8, 8] and C [16, 8] lie in the registers of lane 4 g + q (PTX ISA, "Matrix
// Fragments for mma.m16n8k8 with .f64"):
//
// clang-format off
//   a[0], a[1]  ->  A[g][q],      A[g + 8][q]          a[2], a[3]  ->  the same of column q + 4
//   b[0], b[1]  ->  B[q][g],      B[q + 4][g]
//   c[0], c[1]  ->  C[g][2 q],    C[g][2 q + 1]        c[2], c[3]  ->  the same of row g + 8
// clang-format on
#pragma once

#include "kernels/common/warp.cuh"

namespace fusedstep::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ void multiply_add_8x8x4(double a, double b, double& c0, double& c1) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c0), "+d"(c1)
      : "d"(a), "d"(b));
}
#endif

// C += A B. All lanes of a warp call this together. The order in which a tensor core adds the eight
// products is unspecified; elsewhere they are added one after the other.
__device__ __forceinline__ void multiply_add(const double (&a)[4], const double (&b)[2],
                                             double (&c)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  multiply_add_8x8x4(a[0], b[0], c[0], c[1]);
  multiply_add_8x8x4(a[1], b[0], c[2], c[3]);
  multiply_add_8x8x4(a[2], b[1], c[0], c[1]);
  multiply_add_8x8x4(a[3], b[1], c[2], c[3]);
#else
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const double upper = __shfl_sync(kEveryLane, a[k / 4 * 2], 4 * g + k % 4);
    const double lower = __shfl_sync(kEveryLane, a[k / 4 * 2 + 1], 4 * g + k % 4);
    const double left = __shfl_sync(kEveryLane, b[k / 4], 4 * (2 * q) + k % 4);
    const double right = __shfl_sync(kEveryLane, b[k / 4], 4 * (2 * q + 1) + k % 4);
    c[0] += upper * left;
    c[1] += upper * right;
    c[2] += lower * left;
    c[3] += lower * right;
  }
#endif
}

}  // namespace fusedstep::cuda
