// AVX-512 with VNNI, and with products in bf16 where the CPU has them.
#include "kernels.h"

#if defined(__x86_64__) && (defined(SIGRL_EMULATED) || defined(__clang__) || __GNUC__ >= 10)
#include "compiler.h"
#include "tanh_lines.h"
#include <immintrin.h>
TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")

namespace sigrl {
namespace {
#include "vector_512.h"

using V = Vector512;
constexpr int LARGEST_WEIGHT = 127;
#include "without_tiles.h"
#include "tanh_fixed.h"
}  // namespace

const Kernels* avx512_kernels(bool bf16) {
    static const Kernels plain{CHANNELS, BUFFER_ROWS, true, false, LARGEST_WEIGHT, operand, decouple, reconstruct, product};
    static const Kernels with_bf16{CHANNELS, BUFFER_ROWS, true, true, LARGEST_WEIGHT, operand, decouple, reconstruct, product};
    return bf16 ? &with_bf16 : &plain;
}
}  // namespace sigrl
TARGET_END

#else
const sigrl::Kernels* sigrl::avx512_kernels(bool) { return nullptr; }
#endif
