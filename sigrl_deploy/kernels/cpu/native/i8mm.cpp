// NEON with products in 8 bits of two rows by two channels at once (SMMLA), everything else as in neon.cpp.
#include "kernels.h"

#if defined(__aarch64__) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 10)
#include "compiler.h"
#include <arm_neon.h>
TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm")

namespace sigrl {
namespace {
#include "vector_neon.h"

using V = VectorNeon;
constexpr int CHANNELS = V::VECTORS * V::LANES;
constexpr int MULTIPLIED_ROWS = V::ROWS;
constexpr int BUFFER_ROWS = 2;  // rows in pairs: what is computed of one behind the last patch is never read
constexpr int LARGEST_WEIGHT = 127;
constexpr int GROUP = 8;  // bytes of a row, or of a channel's weights, that lie together: [2][GROUP] fill a register
#include "exponential.h"
#include "operand.h"
#include "product.h"
#include "by_lanes.h"

int8x16_t load_pair(const char* at) { return vld1q_s8(reinterpret_cast<const int8_t*>(at)); }

// [2 rows][2 channels] of both → [2 rows][4 channels]
void store_pairs(float* tile, V::Int left, V::Int right) {
    const int64x2_t a = vreinterpretq_s64_s32(left), b = vreinterpretq_s64_s32(right);
    V::store_int(tile, vreinterpretq_s32_s64(vzip1q_s64(a, b)));
    V::store_int(tile + CHANNELS, vreinterpretq_s32_s64(vzip2q_s64(a, b)));
}

// Accumulators of PAIRS pairs of patches by a panel of W, to tile [2 PAIRS, CHANNELS]
template <int PAIRS> NOINLINE void energies_of_pairs(const Weights& weights, int channel, const char* operand, float* tile) {
    const size_t pair = 2 * row_bytes(INT8, weights.dim), depth = size_t(weights.dim);
    const char* panel = weights.panels + size_t(channel / CHANNELS) * depth * CHANNELS;
    V::Int sums[PAIRS][CHANNELS / 2] = {};
    for (size_t k = 0; k < depth; k += GROUP, operand += 2 * GROUP, panel += GROUP * CHANNELS) {
        int8x16_t left[PAIRS];
        UNROLL for (int i = 0; i < PAIRS; i++) left[i] = load_pair(operand + i * pair);
        UNROLL for (int c = 0; c < CHANNELS / 2; c++) {
            if (c % 2 == 0) V::keep_order();
            const int8x16_t right = load_pair(panel + 2 * GROUP * c);
            UNROLL for (int i = 0; i < PAIRS; i++) sums[i][c] = vmmlaq_s32(sums[i][c], left[i], right);
        }
    }
    UNROLL for (int i = 0; i < PAIRS; i++)
        UNROLL for (int c = 0; c < CHANNELS / 2; c += 2)
            store_pairs(tile + 2 * i * CHANNELS + 2 * c, sums[i][c], sums[i][c + 1]);
}

// Calls with a constant number of pairs, from PAIRS down to 1.
template <int PAIRS> INLINE void by_pairs(int pairs, const Weights& weights, int channel, const char* operand, float* tile) {
    if (pairs == PAIRS) return energies_of_pairs<PAIRS>(weights, channel, operand, tile);
    if constexpr (PAIRS > 1) by_pairs<PAIRS - 1>(pairs, weights, channel, operand, tile);
}

template <Precision PRECISION>
INLINE void multiply(int rows, const Weights& weights, int channel, const char* operand, float* tile) {
    if constexpr (PRECISION == INT8) by_pairs<V::ROWS / 2>((rows + 1) / 2, weights, channel, operand, tile);
    else by_lanes<PRECISION, V::ROWS>(rows, weights, channel, operand, tile);
}
#include "stages.h"

// Rows in pairs, GROUP bytes of each in turn
void int8_operand(const Picture& picture, const float* label, char* operand) {
    const size_t dim = size_t(picture.dim), row = row_bytes(INT8, picture.dim);
    for (size_t p = 0; p < size_t(picture.patches); p++)
        for (size_t k = 0; k < dim; k += BLOCK) {
            char block[BLOCK];
            operand_block<INT8>(picture.rows + p * dim + k, label + k, block);
            char* out = operand + p / 2 * 2 * row + p % 2 * GROUP + 2 * k;
            for (int i = 0; i < BLOCK; i += GROUP) __builtin_memcpy(out + 2 * i, block + i, GROUP);
        }
}
}  // namespace

const Kernels* i8mm_kernels() {
    static const Kernels kernels{
        CHANNELS, BUFFER_ROWS, false, false, LARGEST_WEIGHT, operand, decouple, reconstruct, product, GROUP};
    return &kernels;
}
}  // namespace sigrl
TARGET_END

#else
const sigrl::Kernels* sigrl::i8mm_kernels() { return nullptr; }
#endif
