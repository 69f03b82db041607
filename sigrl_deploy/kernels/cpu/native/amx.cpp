// AMX: products in 8 bits and in bf16 by tiles of 16 rows of 64 bytes, everything else as in AVX-512.
#include "kernels.h"

#if defined(__x86_64__) && (defined(SIGRL_EMULATED) || defined(__clang__) || __GNUC__ >= 11)
#include "compiler.h"
#include "tanh_lines.h"
#include <immintrin.h>
TARGET_BEGIN(
    "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")

namespace sigrl {
namespace {
#include "vector_512.h"

using V = Vector512;
constexpr int CHANNELS = V::VECTORS * V::LANES;  // of a panel: two tiles
constexpr int TILE = 16;
constexpr int MULTIPLIED_ROWS = 2 * TILE;
constexpr int BUFFER_ROWS = 2 * TILE;  // tiles are whole: what they compute of rows behind the last patch is never read
constexpr int LARGEST_WEIGHT = 127;
#include "exponential.h"
#include "operand.h"
#include "product.h"

struct alignas(64) TileConfig {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

// For as long as it lives, all eight tiles are 16 rows of 64 bytes.
struct Tiles {
    // A constant: compilers do not know that _tile_loadconfig reads memory, and may leave out what was only just written there.
    static constexpr TileConfig CONFIG{
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE}};

    INLINE Tiles() { _tile_loadconfig(&CONFIG); }
    INLINE ~Tiles() { _tile_release(); }
};

#define MULTIPLY_TILES(sum, left, right) \
    do { \
        if constexpr (PRECISION == INT8) _tile_dpbusd(sum, left, right); \
        else _tile_dpbf16ps(sum, left, right); \
    } while (0)

// Tiles 0 to 3 are sums, [upper, lower rows][left, right channels]; 4 and 5 rows of the operand; 6 and 7 of the panel.
template <Precision PRECISION>
INLINE void multiply_tiles(bool lower, const Weights& weights, int channel, const char* operand, float* tile) {
    const size_t row = row_bytes(PRECISION, weights.dim), depth = size_t(weights.dim) * bytes_of(PRECISION);
    const size_t panel_row = 4 * CHANNELS, out_row = CHANNELS * sizeof(float);
    const char* panel = weights.panels + size_t(channel / CHANNELS) * depth * CHANNELS;
    if constexpr (PRECISION == INT8) {  // rows 0 bytes apart: every row starts with the same values
        const int32_t* start = weights.start + channel;
        _tile_loadd(0, start, 0);
        _tile_loadd(1, start + TILE, 0);
        _tile_loadd(2, start, 0);
        _tile_loadd(3, start + TILE, 0);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t k = 0; k < depth; k += 64, panel += 16 * panel_row) {
        _tile_loadd(6, panel, panel_row);
        _tile_loadd(7, panel + 64, panel_row);
        _tile_loadd(4, operand + k, row);
        MULTIPLY_TILES(0, 4, 6);
        MULTIPLY_TILES(1, 4, 7);
        if (lower) {
            _tile_loadd(5, operand + k + TILE * row, row);
            MULTIPLY_TILES(2, 5, 6);
            MULTIPLY_TILES(3, 5, 7);
        }
    }
    _tile_stored(0, tile, out_row);
    _tile_stored(1, tile + TILE, out_row);
    if (lower) {
        _tile_stored(2, tile + TILE * CHANNELS, out_row);
        _tile_stored(3, tile + TILE * CHANNELS + TILE, out_row);
    }
}

template <Precision PRECISION>
INLINE void multiply(int rows, const Weights& weights, int channel, const char* operand, float* tile) {
    if constexpr (PRECISION == FP32)
        for (int first = 0; first < rows; first += V::ROWS)
            energies<FP32, V::ROWS>(
                rows - first < V::ROWS ? rows - first : V::ROWS, weights, channel,
                operand + first * row_bytes(FP32, weights.dim), tile + first * CHANNELS);
    else if (rows > TILE)
        multiply_tiles<PRECISION>(true, weights, channel, operand, tile);
    else
        multiply_tiles<PRECISION>(false, weights, channel, operand, tile);
}
#include "stages.h"
#include "tanh_fixed.h"

void decouple_by_tiles(
    const Weights& weights, const Picture& picture, Precision precision, const char* operand, float* tile, float* semantic) {
    Tiles tiles;
    decouple(weights, picture, precision, operand, tile, semantic);
}

void reconstruct_by_tiles(
    const Weights& weights, const Picture& picture, Precision precision, const char* operands, int labels, float* tiles_of,
    float* sum) {
    Tiles tiles;
    reconstruct(weights, picture, precision, operands, labels, tiles_of, sum);
}
}  // namespace

const Kernels* amx_kernels() {
    static const Kernels kernels{
        CHANNELS, BUFFER_ROWS, true, true, LARGEST_WEIGHT, operand, decouple_by_tiles, reconstruct_by_tiles, product};
    return &kernels;
}
}  // namespace sigrl
TARGET_END

#else
const sigrl::Kernels* sigrl::amx_kernels() { return nullptr; }
#endif
