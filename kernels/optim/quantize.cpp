// State to codes and back outside of a step (quantize.h), block by block.
#include "kernels/optim/quantize.h"

#include "kernels/optim/quantize_tile.h"

namespace fusedstep::cpu {
namespace {

template <typename Code>
void encode(const float* x, int64_t size, Code* codes, float* scales) {
  uint16_t halfway[kTile];
  std::fill_n(halfway, kTile, uint16_t{0x8000});
  for (int64_t i = 0; i < size; i += kTile) {
    const int n = static_cast<int>(std::min<int64_t>(kTile, size - i));
    encode_tile(x + i, halfway, codes + i, scales + i / kBlock, n);
  }
}

template <typename Code>
void decode(const Code* codes, const float* scales, int64_t size, float* x) {
  for (int64_t i = 0; i < size; i += kTile) {
    const int n = static_cast<int>(std::min<int64_t>(kTile, size - i));
    decode_tile(codes + i, scales + i / kBlock, x + i, n);
  }
}

}  // namespace

void encode_state(const float* x, int64_t size, int8_t* codes, float* scales) {
  encode(x, size, codes, scales);
}

void encode_state(const float* x, int64_t size, uint8_t* codes, float* scales) {
  encode(x, size, codes, scales);
}

void decode_state(const int8_t* codes, const float* scales, int64_t size, float* x) {
  decode(codes, scales, size, x);
}

void decode_state(const uint8_t* codes, const float* scales, int64_t size, float* x) {
  decode(codes, scales, size, x);
}

}  // namespace fusedstep::cpu
