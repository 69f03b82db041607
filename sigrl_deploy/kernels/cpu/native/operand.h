// tanh(X ⊙ label) as the left operand of the products. Included inside the namespace of an instruction set.

template <Precision PRECISION> INLINE void operand_block(const float* x, const float* label, char* out) {
    V::Float y[BLOCK / V::LANES];
    for (int i = 0; i < BLOCK / V::LANES; i++)
        y[i] = tanh<PRECISION>(V::mul(V::load(x + i * V::LANES), V::load(label + i * V::LANES)));
    if constexpr (PRECISION == INT8)
        V::store_int8(y, out);
    else if constexpr (PRECISION == BF16)
        V::store_bf16(y, out);
    else
        for (int i = 0; i < BLOCK / V::LANES; i++) V::store(reinterpret_cast<float*>(out) + i * V::LANES, y[i]);
}

template <Precision PRECISION> void float_operand(const Picture& picture, const float* label, char* operand) {
    const size_t dim = size_t(picture.dim), row = row_bytes(PRECISION, picture.dim);
    for (int p = 0; p < picture.patches; p++)
        for (size_t k = 0; k < dim; k += BLOCK)
            operand_block<PRECISION>(picture.rows + p * dim + k, label + k, operand + p * row + k * bytes_of(PRECISION));
}

void int8_operand(const Picture& picture, const float* label, char* operand);

void operand(const Picture& picture, const float* label, Precision precision, char* out) {
    if (precision == FP32)
        float_operand<FP32>(picture, label, out);
    else if (precision == BF16)
        float_operand<BF16>(picture, label, out);
    else
        int8_operand(picture, label, out);
}
