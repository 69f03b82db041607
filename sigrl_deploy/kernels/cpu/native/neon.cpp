// NEON with products in 8 bits (SDOT): the least that this kernel needs on ARM.
#include "kernels.h"

#if defined(__aarch64__) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 8)
#include "compiler.h"
#include <arm_neon.h>
TARGET_BEGIN("arch=armv8.2-a+dotprod")

namespace sigrl {
namespace {
#include "vector_neon.h"

using V = VectorNeon;
constexpr int CHANNELS = V::VECTORS * V::LANES;
constexpr int MULTIPLIED_ROWS = V::ROWS;
constexpr int BUFFER_ROWS = 1;
constexpr int LARGEST_WEIGHT = 127;
#include "exponential.h"
#include "operand.h"
#include "product.h"
#include "by_lanes.h"

template <Precision PRECISION>
INLINE void multiply(int rows, const Weights& weights, int channel, const char* operand, float* tile) {
    by_lanes<PRECISION, V::ROWS>(rows, weights, channel, operand, tile);
}
#include "stages.h"

void int8_operand(const Picture& picture, const float* label, char* operand) {
    float_operand<INT8>(picture, label, operand);
}
}  // namespace

const Kernels* neon_kernels() {
    static const Kernels kernels{CHANNELS, BUFFER_ROWS, false, false, LARGEST_WEIGHT, operand, decouple, reconstruct, product};
    return &kernels;
}
}  // namespace sigrl
TARGET_END

#else
const sigrl::Kernels* sigrl::neon_kernels() { return nullptr; }
#endif
