// What the driver (svfr.cpp) and the kernels of each instruction set (stages.h) share.
//
// Symbols as in docs/method.md: P patches, C labels, D channels. D is padded to a multiple of BLOCK here; padding channels are
// zero in weights, patches and labels, and stay zero in what is computed from them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sigrl {

enum Precision { FP32, BF16, INT8 };  // of the products by W1 and W2; everything else is in fp32
enum InstructionSet { AVX2, AVX_VNNI, AVX512, AMX, NEON, I8MM };  // of each kind of CPU the best last

constexpr int BLOCK = 64;           // channels that are turned into an operand at once; D is a multiple of it
constexpr int ROW_PADDING = 64;     // bytes between rows of the operand, which would else share sets of the cache
constexpr int LABELS_AT_ONCE = 2;   // labels of stage 2 that are added to the sum in one pass
constexpr float LOG2_E = 1.4426950408889634f;

inline int bytes_of(Precision precision) { return precision == INT8 ? 1 : precision == BF16 ? 2 : 4; }
inline size_t row_bytes(Precision precision, int dim) { return size_t(dim) * bytes_of(precision) + ROW_PADDING; }

// W of one stage, packed: energies in powers of two, z[n, d] = scale[d] · Σ_k A[n, k] W[d, k].
// A panel is `channels` (see Kernels) wide: [D / channels][K / per][channels][per], where `per` elements fill 4 bytes, or
// `int8_group` in 8 bits.
struct Weights {
    int dim = 0;
    bool shift = false;              // exp could overflow, so the maximum over the patches is subtracted (identity 5)
    const char* panels = nullptr;
    const float* scale = nullptr;    // [D]
    const int32_t* start = nullptr;  // [D] first value of the accumulators in 8 bits, where the operand is 128 + 127 tanh
};

// One picture, laid out for the kernels.
struct Picture {
    int patches = 0, dim = 0;
    const float* rows = nullptr;      // X [P, D]
    const float* panels = nullptr;    // X as [D / channels][P][channels]
    const int16_t* fixed = nullptr;   // X / largest in steps of 1/32767 as [D / BLOCK][P][BLOCK]; only where `fixed_point`
    const float* largest = nullptr;   // [D] the largest |X[n, d]| over the patches
};

// out [rows, channels] = left by a panel [depth][channels], added to `add` unless that is null. Strides in floats.
struct Product {
    const float* left;
    size_t left_row, left_step;
    const float* panel;
    int rows, depth;
    const float* add;
    size_t add_row;
    float* out;
    size_t out_row;
};

// The kernels of one instruction set. `operand` is [P, K] bytes, 8-bit, bf16 or fp32, in rows of row_bytes.
struct Kernels {
    int channels;      // of a panel
    int rows;          // operand and tiles have room for a multiple of it
    bool fixed_point;  // tanh in 8 bits is taken of 16-bit fixed-point numbers
    bool bf16;         // whether there are products in bf16
    int largest_weight;  // in 8 bits, with which no product overflows

    // tanh(X ⊙ label [D]), of one picture and one label.
    void (*operand)(const Picture&, const float* label, Precision, char* operand);
    // Stage 1: `semantic` [D], a row of S. `tile` has room for [rows, channels].
    void (*decouple)(const Weights&, const Picture&, Precision, const char* operand, float* tile, float* semantic);
    // Stage 2 of up to LABELS_AT_ONCE labels, whose operands follow each other: adds to `sum`, laid out as Picture::panels.
    void (*reconstruct)(const Weights&, const Picture&, Precision, const char* operands, int labels, float* tiles, float* sum);
    void (*product)(const Product&);

    int int8_group = 4;  // bytes of a channel's weights that lie together
};

// Null where this build has none.
const Kernels* avx2_kernels();
const Kernels* avx_vnni_kernels();
const Kernels* avx512_kernels(bool bf16);
const Kernels* amx_kernels();
const Kernels* neon_kernels();
const Kernels* i8mm_kernels();

inline size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
inline size_t tile_rows(const Kernels& kernels, int patches) { return round_up(size_t(patches), size_t(kernels.rows)); }

}  // namespace sigrl
