// Both stages of SVFR for one panel of channels after the other. Included inside the namespace of an instruction set, after its
// `V`, `MULTIPLIED_ROWS` and `multiply`, which gives the accumulators of that many patches, or of those that are left.
//
// No energy leaves the cache: `tile` holds those of one label's patches by one panel. Its rows are turned into exponentials one
// block behind the products, so that both can run at the same time.

// A panel of one label, in which `tile` holds first accumulators, then what stage 2 needs.
template <Precision PRECISION> struct Panel {
    float* tile;
    V::Float scale[V::VECTORS], largest[V::VECTORS];  // `largest` is subtracted where Weights::shift asks for it
    V::Float numerator[V::VECTORS], denominator[V::VECTORS];

    INLINE Panel(const Weights& weights, int channel, float* tile) : tile(tile) {
        for (int j = 0; j < V::VECTORS; j++) {
            scale[j] = V::load(weights.scale + channel + j * V::LANES);
            largest[j] = numerator[j] = denominator[j] = V::set(0.f);
        }
    }

    INLINE V::Float energy(int row, int j) const {
        const float* at = tile + size_t(row) * CHANNELS + j * V::LANES;
        if constexpr (PRECISION == INT8) return V::mul(V::to_float(V::load_int(at)), scale[j]);
        else return V::load(at);  // the scale is part of the weights
    }

    INLINE void find_largest(int rows) {
        for (int j = 0; j < V::VECTORS; j++) {
            largest[j] = energy(0, j);
            for (int row = 1; row < rows; row++) largest[j] = V::above(energy(row, j), largest[j]);
        }
    }

    // Rows from `first` on, whose patches are `x` [rows, CHANNELS]
    template <bool FIRST_STAGE, bool SHIFT> INLINE void add(int first, int end, const float* x) {
        for (int row = first; row < end; row++)
            for (int j = 0; j < V::VECTORS; j++) {
                V::Float z = energy(row, j);
                if constexpr (SHIFT) z = V::above(V::set(-126.f), V::sub(z, largest[j]));
                const V::Float e = exp2<PRECISION>(z);
                const size_t at = size_t(row) * CHANNELS + j * V::LANES;
                denominator[j] = V::add(denominator[j], e);
                if constexpr (FIRST_STAGE)
                    numerator[j] = V::fma(e, V::load(x + at), numerator[j]);
                else
                    V::store(tile + at, e);
            }
    }
};

template <Precision PRECISION, bool FIRST_STAGE, bool SHIFT>
INLINE void fill(
    Panel<PRECISION>& panel, const Weights& weights, const Picture& picture, int channel, const char* operand) {
    const size_t row = row_bytes(PRECISION, weights.dim);
    const float* x = picture.panels + size_t(channel) * picture.patches;
    int ready = 0;
    for (int p = 0; p < picture.patches; p += MULTIPLIED_ROWS) {
        const int rows = picture.patches - p < MULTIPLIED_ROWS ? picture.patches - p : MULTIPLIED_ROWS;
        multiply<PRECISION>(rows, weights, channel, operand + p * row, panel.tile + size_t(p) * CHANNELS);
        if constexpr (!SHIFT) {
            panel.template add<FIRST_STAGE, SHIFT>(ready, p, x);
            ready = p;
        }
    }
    if constexpr (SHIFT) panel.find_largest(picture.patches);
    panel.template add<FIRST_STAGE, SHIFT>(ready, picture.patches, x);
}

template <Precision PRECISION, bool SHIFT>
void decouple_in(const Weights& weights, const Picture& picture, const char* operand, float* tile, float* semantic) {
    for (int channel = 0; channel < weights.dim; channel += CHANNELS) {
        Panel<PRECISION> panel(weights, channel, tile);
        fill<PRECISION, true, SHIFT>(panel, weights, picture, channel, operand);
        for (int j = 0; j < V::VECTORS; j++)
            V::store(semantic + channel + j * V::LANES, V::div(panel.numerator[j], panel.denominator[j]));
    }
}

template <Precision PRECISION, bool SHIFT>
void reconstruct_in(
    const Weights& weights, const Picture& picture, const char* operands, int labels, float* tiles, float* sum) {
    const size_t rows = round_up(size_t(picture.patches), BUFFER_ROWS), operand_bytes = rows * row_bytes(PRECISION, weights.dim);
    for (int channel = 0; channel < weights.dim; channel += CHANNELS, sum += size_t(picture.patches) * CHANNELS) {
        V::Float factor[LABELS_AT_ONCE][V::VECTORS];
        for (int label = 0; label < labels; label++) {
            Panel<PRECISION> panel(weights, channel, tiles + label * rows * CHANNELS);
            fill<PRECISION, false, SHIFT>(panel, weights, picture, channel, operands + label * operand_bytes);
            for (int j = 0; j < V::VECTORS; j++) factor[label][j] = V::div(V::set(1.f), panel.denominator[j]);
        }
        for (int p = 0; p < picture.patches; p++)
            for (int j = 0; j < V::VECTORS; j++) {
                const size_t at = size_t(p) * CHANNELS + j * V::LANES;
                V::Float total = V::load(sum + at);
                for (int label = 0; label < labels; label++)
                    total = V::fma(V::load(tiles + label * rows * CHANNELS + at), factor[label][j], total);
                V::store(sum + at, total);
            }
    }
}

template <Precision PRECISION>
void decouple_as(const Weights& weights, const Picture& picture, const char* operand, float* tile, float* semantic) {
    if (weights.shift) decouple_in<PRECISION, true>(weights, picture, operand, tile, semantic);
    else decouple_in<PRECISION, false>(weights, picture, operand, tile, semantic);
}

template <Precision PRECISION>
void reconstruct_as(
    const Weights& weights, const Picture& picture, const char* operands, int labels, float* tiles, float* sum) {
    if (weights.shift) reconstruct_in<PRECISION, true>(weights, picture, operands, labels, tiles, sum);
    else reconstruct_in<PRECISION, false>(weights, picture, operands, labels, tiles, sum);
}

void decouple(
    const Weights& weights, const Picture& picture, Precision precision, const char* operand, float* tile, float* semantic) {
    if (precision == FP32) decouple_as<FP32>(weights, picture, operand, tile, semantic);
    else if (precision == BF16) decouple_as<BF16>(weights, picture, operand, tile, semantic);
    else decouple_as<INT8>(weights, picture, operand, tile, semantic);
}

void reconstruct(
    const Weights& weights, const Picture& picture, Precision precision, const char* operands, int labels, float* tiles,
    float* sum) {
    if (precision == FP32) reconstruct_as<FP32>(weights, picture, operands, labels, tiles, sum);
    else if (precision == BF16) reconstruct_as<BF16>(weights, picture, operands, labels, tiles, sum);
    else reconstruct_as<INT8>(weights, picture, operands, labels, tiles, sum);
}
