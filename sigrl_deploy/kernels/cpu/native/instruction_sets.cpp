#include "instruction_sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sigrl {
namespace {

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }  // zeros where there is no such leaf
};
bool has(unsigned word, int bit) { return word >> bit & 1; }

// The registers that the operating system saves when it switches threads, a bit for each kind.
unsigned saved_registers() {
    if (!has(Leaf(1, 0).c, 27)) return 0;  // OSXSAVE
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}
bool saves(unsigned kinds) { return (saved_registers() & kinds) == kinds; }

constexpr unsigned YMM = 0x6, ZMM = YMM | 0xe0, TILES = ZMM | 0x60000;

// Linux lets a process use tiles only after it has asked for them. Its threads inherit that, and it cannot be taken back.
bool grants_tiles() {
#if defined(__linux__)
    constexpr long SUPPORTED = 0x1021, TILE_DATA = 18;  // ARCH_GET_XCOMP_SUPP
    unsigned long kinds = 0;
    return syscall(SYS_arch_prctl, SUPPORTED, &kinds) == 0 && (kinds >> TILE_DATA & 1);
#else
    return false;
#endif
}
bool request_tiles() {
#if defined(__linux__)
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

bool has_avx2() { return saves(YMM) && has(Leaf(1, 0).c, 12) && has(Leaf(7, 0).b, 5); }
bool has_avx_vnni() { return has_avx2() && has(Leaf(7, 1).a, 4); }
bool has_avx512() {
    const Leaf leaf(7, 0);
    const bool base = has(leaf.b, 16) && has(leaf.b, 17) && has(leaf.b, 30) && has(leaf.b, 31);  // F, DQ, BW, VL
    return has_avx2() && saves(ZMM) && base && has(leaf.c, 11);                                   // VNNI
}
bool has_bf16() { return has(Leaf(7, 1).a, 5); }
bool has_amx() {
    const Leaf leaf(7, 0);
    const bool tiles = has(leaf.d, 22) && has(leaf.d, 24) && has(leaf.d, 25);  // BF16, TILE, INT8
    return has_avx512() && has_bf16() && tiles && saves(TILES) && grants_tiles();
}

}  // namespace

const Kernels* kernels_of(InstructionSet set) {
#if defined(SIGRL_EMULATED)  // every set runs on AVX2
    switch (set) {
        case AVX2: return avx2_kernels();
        case AVX_VNNI: return avx_vnni_kernels();
        case AVX512: return avx512_kernels(true);
        case AMX: return amx_kernels();
        default: return nullptr;
    }
#endif
    switch (set) {
        case AVX2: return has_avx2() ? avx2_kernels() : nullptr;
        case AVX_VNNI: return has_avx_vnni() ? avx_vnni_kernels() : nullptr;
        case AVX512: return has_avx512() ? avx512_kernels(has_bf16()) : nullptr;
        case AMX: return has_amx() ? amx_kernels() : nullptr;
        default: return nullptr;
    }
}

bool permitted(InstructionSet set) {
#if defined(SIGRL_EMULATED)
    return true;
#endif
    return set != AMX || request_tiles();
}

}  // namespace sigrl

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sigrl {
namespace {

#if defined(__linux__)
bool has_dot_product() { return getauxval(AT_HWCAP) >> 20 & 1; }  // ASIMDDP
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
bool has_dot_product() { return true; }  // every Apple silicon of a Mac
bool has_i8mm() {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &size, nullptr, 0) == 0 && value != 0;
}
#else
bool has_dot_product() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace

const Kernels* kernels_of(InstructionSet set) {
    switch (set) {
        case NEON: return has_dot_product() ? neon_kernels() : nullptr;
        case I8MM: return has_dot_product() && has_i8mm() ? i8mm_kernels() : nullptr;
        default: return nullptr;
    }
}

bool permitted(InstructionSet) { return true; }

}  // namespace sigrl

#else
bool sigrl::permitted(InstructionSet) { return false; }
const sigrl::Kernels* sigrl::kernels_of(InstructionSet) { return nullptr; }
#endif
