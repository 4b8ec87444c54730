// The pseudo-inverse of one tiny matrix on the CPU: which of the functions that
// tiny_pinv_alone_of.cpp.in makes has to do it.
#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cpu {

void tiny_pinv_alone(const TinyPinv& p, int64_t matrix) {
  tiny::with_storage_and_side(p, [&](auto storage, auto side) {
    tiny_pinv_alone_of<decltype(storage), decltype(side)::value>(p, matrix);
  });
}

}  // namespace fusedstep::cpu
