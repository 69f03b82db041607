// AVX2 and FMA: the least that this kernel needs.
#include "kernels.h"

#if defined(__x86_64__)
#include "compiler.h"
#include <immintrin.h>
TARGET_BEGIN("avx2,fma")

namespace sigrl {
namespace {
#include "vector_256.h"

struct V : Vector256 {
    // Two products are added in 16 bits, which overflows with weights of 8 bits: 255 · 64 · 2 = 32640 is the most.
    static Int dot_int8(Int sum, Int a, Int b) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
    }
};
constexpr int LARGEST_WEIGHT = 63;
#include "without_tiles.h"

void int8_operand(const Picture& picture, const float* label, char* operand) {
    float_operand<INT8>(picture, label, operand);
}
}  // namespace

const Kernels* avx2_kernels() {
    static const Kernels kernels{CHANNELS, BUFFER_ROWS, false, false, LARGEST_WEIGHT, operand, decouple, reconstruct, product};
    return &kernels;
}
}  // namespace sigrl
TARGET_END

#else
const sigrl::Kernels* sigrl::avx2_kernels() { return nullptr; }
#endif
