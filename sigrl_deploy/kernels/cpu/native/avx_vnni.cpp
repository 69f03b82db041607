// AVX2 with products in 8 bits that do not overflow: AVX-VNNI, of CPUs without AVX-512.
#include "kernels.h"

#if defined(__x86_64__) && (defined(SIGRL_EMULATED) || defined(__clang__) || __GNUC__ >= 11)
#include "compiler.h"
#include <immintrin.h>
TARGET_BEGIN("avx2,fma,avxvnni")

namespace sigrl {
namespace {
#include "vector_256.h"

struct V : Vector256 {
    static Int dot_int8(Int sum, Int a, Int b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
};
constexpr int LARGEST_WEIGHT = 127;
#include "without_tiles.h"

void int8_operand(const Picture& picture, const float* label, char* operand) {
    float_operand<INT8>(picture, label, operand);
}
}  // namespace

const Kernels* avx_vnni_kernels() {
    static const Kernels kernels{CHANNELS, BUFFER_ROWS, false, false, LARGEST_WEIGHT, operand, decouple, reconstruct, product};
    return &kernels;
}
}  // namespace sigrl
TARGET_END

#else
const sigrl::Kernels* sigrl::avx_vnni_kernels() { return nullptr; }
#endif
