// Products of a few rows by one panel, in registers. Included inside the namespace of an instruction set.

template <Precision> struct Accumulator {
    using Type = V::Float;
    static INLINE Type zero() { return V::set(0.f); }
};
template <> struct Accumulator<INT8> {
    using Type = V::Int;
};
template <Precision PRECISION, int R> using Sums = typename Accumulator<PRECISION>::Type[R][V::VECTORS];

template <Precision PRECISION>
INLINE typename Accumulator<PRECISION>::Type multiply_add(
    typename Accumulator<PRECISION>::Type sum, V::Int left, const char* right) {
    if constexpr (PRECISION == INT8)
        return V::dot_int8(sum, left, V::load_int(right));
    else if constexpr (PRECISION == BF16)
        return V::dot_bf16(sum, left, V::load_int(right));
    else
        return V::fma(V::as_float(left), V::load(reinterpret_cast<const float*>(right)), sum);
}

// sums[r] += left row r by the panel, both in groups of four bytes; rows and groups of `left` lie `row` and `step` bytes apart
template <Precision PRECISION, int R>
INLINE void accumulate(
    Sums<PRECISION, R>& sums, const char* left, size_t row, size_t step, size_t groups, const char* panel) {
    for (size_t g = 0; g < groups; g++, left += step, panel += 4 * CHANNELS) {
        UNROLL for (int r = 0; r < R; r++) {
            const V::Int repeated = V::repeat(left + r * row);
            UNROLL for (int j = 0; j < V::VECTORS; j++)
                sums[r][j] = multiply_add<PRECISION>(sums[r][j], repeated, panel + 4 * j * V::LANES);
        }
    }
}

// Accumulators of R patches by a panel of W, to tile [R, CHANNELS]
template <Precision PRECISION, int R>
NOINLINE void energies_of(const Weights& weights, int channel, const char* operand, float* tile) {
    Sums<PRECISION, R> sums;
    const size_t groups = size_t(weights.dim) * bytes_of(PRECISION) / 4;
    UNROLL for (int r = 0; r < R; r++)
        for (int j = 0; j < V::VECTORS; j++) {
            if constexpr (PRECISION == INT8)
                sums[r][j] = V::load_int(weights.start + channel + j * V::LANES);
            else
                sums[r][j] = Accumulator<PRECISION>::zero();
        }
    const char* panel = weights.panels + size_t(channel / CHANNELS) * groups * 4 * CHANNELS;
    accumulate<PRECISION, R>(sums, operand, row_bytes(PRECISION, weights.dim), 4, groups, panel);
    UNROLL for (int r = 0; r < R; r++)
        for (int j = 0; j < V::VECTORS; j++) {
            float* at = tile + r * CHANNELS + j * V::LANES;
            if constexpr (PRECISION == INT8)
                V::store_int(at, sums[r][j]);
            else
                V::store(at, sums[r][j]);
        }
}

template <int R> NOINLINE void float_rows(const Product& product, int first) {
    Sums<FP32, R> sums;
    UNROLL for (int r = 0; r < R; r++)
        for (int j = 0; j < V::VECTORS; j++)
            sums[r][j] =
                product.add ? V::load(product.add + (first + r) * product.add_row + j * V::LANES) : V::set(0.f);
    const char* left = reinterpret_cast<const char*>(product.left + first * product.left_row);
    accumulate<FP32, R>(
        sums, left, 4 * product.left_row, 4 * product.left_step, size_t(product.depth),
        reinterpret_cast<const char*>(product.panel));
    UNROLL for (int r = 0; r < R; r++)
        for (int j = 0; j < V::VECTORS; j++) V::store(product.out + (first + r) * product.out_row + j * V::LANES, sums[r][j]);
}

// Calls with a constant number of rows, from ROWS down to 1.
template <Precision PRECISION, int R>
INLINE void energies(int rows, const Weights& weights, int channel, const char* operand, float* tile) {
    if (rows == R) return energies_of<PRECISION, R>(weights, channel, operand, tile);
    if constexpr (R > 1) energies<PRECISION, R - 1>(rows, weights, channel, operand, tile);
}

template <int R> INLINE void float_rows_of(int rows, const Product& product, int first) {
    if (rows == R) return float_rows<R>(product, first);
    if constexpr (R > 1) float_rows_of<R - 1>(rows, product, first);
}

void product(const Product& product) {
    for (int first = 0; first < product.rows; first += V::ROWS) {
        const int rows = product.rows - first < V::ROWS ? product.rows - first : V::ROWS;
        float_rows_of<V::ROWS>(rows, product, first);
    }
}
