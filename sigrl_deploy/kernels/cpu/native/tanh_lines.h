// tanh within ±4 by 64 line segments, each 1/8 wide, for 16-bit fixed-point arguments u in steps of 1/8192.
#pragma once
#include <cstdint>

namespace sigrl {

// base[i] + slope[i] u is 64 (128 + 127 tanh(u)) + 32, so that a shift by 6 rounds; i are the upper six bits of u.
struct TanhLines {
    int16_t base[64], slope[64];
};
extern const TanhLines TANH_LINES;

}  // namespace sigrl
