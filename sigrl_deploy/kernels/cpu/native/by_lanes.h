// Energies of a few rows by one panel, in registers, where an instruction multiplies by one lane of a vector: four groups of a
// row of the operand are loaded at once, and none is repeated. Included inside the namespace of an instruction set, after
// product.h.

// sums += the groups from LANE on of each row by as many of the panel
template <Precision PRECISION, int R, int LANE = 0>
INLINE void multiply_lanes(Sums<PRECISION, R>& sums, const V::Int (&left)[R], const char* panel) {
    V::keep_order();
    UNROLL for (int j = 0; j < V::VECTORS; j++) {
        const V::Int right = V::load_int(panel + 4 * j * V::LANES);
        UNROLL for (int r = 0; r < R; r++) {
            if constexpr (PRECISION == INT8)
                sums[r][j] = V::template dot_int8<LANE>(sums[r][j], left[r], right);
            else
                sums[r][j] = V::template fma_lane<LANE>(sums[r][j], left[r], V::as_float(right));
        }
    }
    if constexpr (LANE + 1 < V::LANES) multiply_lanes<PRECISION, R, LANE + 1>(sums, left, panel + 4 * CHANNELS);
}

// Accumulators of R patches by a panel of W, to tile [R, CHANNELS]
template <Precision PRECISION, int R>
NOINLINE void energies_by_lanes(const Weights& weights, int channel, const char* operand, float* tile) {
    const size_t row = row_bytes(PRECISION, weights.dim), depth = size_t(weights.dim) * bytes_of(PRECISION);
    const char* panel = weights.panels + size_t(channel / CHANNELS) * depth * CHANNELS;
    Sums<PRECISION, R> sums = {};
    for (size_t k = 0; k < depth; k += 4 * V::LANES, panel += 4 * V::LANES * CHANNELS) {
        V::Int left[R];
        UNROLL for (int r = 0; r < R; r++) left[r] = V::load_int(operand + r * row + k);
        multiply_lanes<PRECISION, R>(sums, left, panel);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < V::VECTORS; j++) {
            float* at = tile + r * CHANNELS + j * V::LANES;
            if constexpr (PRECISION == INT8)
                V::store_int(at, sums[r][j]);
            else
                V::store(at, sums[r][j]);
        }
}

// Calls with a constant number of rows, from R down to 1.
template <Precision PRECISION, int R>
INLINE void by_lanes(int rows, const Weights& weights, int channel, const char* operand, float* tile) {
    if (rows == R) return energies_by_lanes<PRECISION, R>(weights, channel, operand, tile);
    if constexpr (R > 1) by_lanes<PRECISION, R - 1>(rows, weights, channel, operand, tile);
}
