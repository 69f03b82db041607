// In a file of its own, since what runs when the library is loaded must not need AVX-512.
#include "tanh_lines.h"

#include <algorithm>
#include <cmath>

namespace sigrl {
namespace {

// A line's slope is that of its chord, and it lies halfway between the chord and the curve's largest distance from it.
TanhLines make_lines() {
    TanhLines lines;
    for (int i = 0; i < 64; i++) {
        const double start = (i < 32 ? i : i - 64) / 8.0, width = 0.125;
        const double first = std::tanh(start), slope = (std::tanh(start + width) - first) / width;
        double farthest = 0;
        for (int j = 0; j <= 64; j++) {
            const double u = start + j * width / 64, distance = std::tanh(u) - (first + slope * (u - start));
            if (std::fabs(distance) > std::fabs(farthest)) farthest = distance;
        }
        lines.slope[i] = int16_t(std::lrint(std::min(127 * 64 * 4 * slope, 32767.0)));
        // The line passes through its middle, however its slope was rounded.
        const double middle = start + width / 2, value = first + slope * width / 2 + farthest / 2;
        lines.base[i] = int16_t(std::lrint(64 * (127 * value + 128) + 32 - lines.slope[i] / 4.0 * middle));
    }
    return lines;
}

}  // namespace

const TanhLines TANH_LINES = make_lines();

}  // namespace sigrl
