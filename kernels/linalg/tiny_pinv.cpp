// The pseudo-inverses of tiny matrices on the CPU, eight at once: which of the functions that
// tiny_pinv_of.cpp.in makes has to do it.
#include "kernels/linalg/tiny_pinv.h"

namespace fusedstep::cpu {

void tiny_pinv(const TinyPinv& p, int64_t begin, int64_t end) {
  tiny::with_storage_and_side(p, [&](auto storage, auto side) {
    tiny_pinv_of<decltype(storage), decltype(side)::value>(p, begin, end);
  });
}

}  // namespace fusedstep::cpu
