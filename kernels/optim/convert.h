// State from float to 8-bit codes and back, outside of a step: for checkpoints.
#pragma once

#include <cstdint>

namespace fusedstep::cpu {

// `size` elements in the order of memory, and a scale for each kBlock of them (quantize.h). Rounded
// to the nearest code: nothing accumulates here, as it does from step to step.
void encode_state(const float* x, int64_t size, int8_t* codes, float* scales);
void encode_state(const float* x, int64_t size, uint8_t* codes, float* scales);

void decode_state(const int8_t* codes, const float* scales, int64_t size, float* x);
void decode_state(const uint8_t* codes, const float* scales, int64_t size, float* x);

}  // namespace fusedstep::cpu
