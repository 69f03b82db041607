// AVX-512, VNNI and bf16 by SIMDe, and AMX in plain C++, so that every instruction set runs on a CPU with AVX2.
// Included before anything else (-include).
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// What SIMDe 0.7.4 lacks
#undef _mm512_rcp14_ps
#define _mm512_rcp14_ps(x) simde_mm512_div_ps(simde_mm512_set1_ps(1.f), x)
inline simde__m512 emulated_cvtepi32_ps(simde__m512i x) {
    int32_t whole[16];
    float converted[16];
    simde_mm512_storeu_si512(whole, x);
    for (int i = 0; i < 16; i++) converted[i] = float(whole[i]);
    return simde_mm512_loadu_ps(converted);
}
inline simde__m512i emulated_cvtps_epi32(simde__m512 x) {  // to the nearest, as the processor is set by default
    float values[16];
    int32_t whole[16];
    simde_mm512_storeu_ps(values, x);
    for (int i = 0; i < 16; i++) whole[i] = _mm_cvtss_si32(_mm_set_ss(values[i]));
    return simde_mm512_loadu_si512(whole);
}
inline simde__m128i emulated_cvtepi32_epi8(simde__m512i x) {
    int32_t whole[16];
    int8_t low[16];
    simde_mm512_storeu_si512(whole, x);
    for (int i = 0; i < 16; i++) low[i] = int8_t(whole[i]);
    return simde_mm_loadu_si128(low);
}
inline simde__m512i emulated_cvtne2ps_pbh(simde__m512 high, simde__m512 low) {  // rounded to nearest even
    float values[32];
    uint16_t rounded[32];
    simde_mm512_storeu_ps(values, low);
    simde_mm512_storeu_ps(values + 16, high);
    for (int i = 0; i < 32; i++) {
        uint32_t bits;
        std::memcpy(&bits, values + i, 4);
        rounded[i] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return simde_mm512_loadu_si512(rounded);
}
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh(high, low) emulated_cvtne2ps_pbh(high, low)
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) emulated_cvtps_epi32(x)
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8(x) emulated_cvtepi32_epi8(x)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) emulated_cvtepi32_ps(x)
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)

// Eight tiles of 16 rows of 64 bytes, as TileConfig asks for.
struct EmulatedTile {
    uint8_t bytes[16][64];
};
inline thread_local EmulatedTile emulated_tiles[8];
inline thread_local bool emulated_tiles_are_configured = false;

inline EmulatedTile& emulated_tile(int number) {
    if (!emulated_tiles_are_configured) __builtin_trap();
    return emulated_tiles[number];
}

inline void emulated_load(int tile, const void* from, size_t stride) {
    for (int row = 0; row < 16; row++)
        std::memcpy(emulated_tile(tile).bytes[row], static_cast<const char*>(from) + row * stride, 64);
}

inline void emulated_store(int tile, void* to, size_t stride) {
    for (int row = 0; row < 16; row++)
        std::memcpy(static_cast<char*>(to) + row * stride, emulated_tile(tile).bytes[row], 64);
}

template <class T> T emulated_element(int tile, int row, int index) {
    T value;
    std::memcpy(&value, emulated_tile(tile).bytes[row] + index * sizeof(T), sizeof(T));
    return value;
}

// unsigned by signed bytes, four at a time
inline void emulated_dpbusd(int sum, int left, int right) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            int32_t total = emulated_element<int32_t>(sum, row, column);
            for (int k = 0; k < 64; k++)
                total += int32_t(emulated_element<uint8_t>(left, row, k)) *
                         int32_t(emulated_element<int8_t>(right, k / 4, 4 * column + k % 4));
            std::memcpy(emulated_tile(sum).bytes[row] + 4 * column, &total, 4);
        }
}

inline float emulated_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline void emulated_dpbf16(int sum, int left, int right) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            float total = emulated_element<float>(sum, row, column);
            for (int k = 0; k < 32; k++)
                total += emulated_bf16(emulated_element<uint16_t>(left, row, k)) *
                         emulated_bf16(emulated_element<uint16_t>(right, k / 2, 2 * column + k % 2));
            std::memcpy(emulated_tile(sum).bytes[row] + 4 * column, &total, 4);
        }
}

inline void emulated_configure(const void* config) {
    const auto* bytes = static_cast<const uint8_t*>(config);
    bool whole = bytes[0] == 1;
    for (int tile = 0; tile < 8; tile++) whole = whole && bytes[16 + 2 * tile] == 64 && bytes[48 + tile] == 16;
    if (!whole) __builtin_trap();
    emulated_tiles_are_configured = true;
    std::memset(emulated_tiles, 0xff, sizeof emulated_tiles);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated_configure(config)
#define _tile_release() (emulated_tiles_are_configured = false)
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_zero(tile) std::memset(emulated_tile(tile).bytes, 0, sizeof(EmulatedTile))
#define _tile_dpbusd(sum, left, right) emulated_dpbusd(sum, left, right)
#define _tile_dpbf16ps(sum, left, right) emulated_dpbf16(sum, left, right)
