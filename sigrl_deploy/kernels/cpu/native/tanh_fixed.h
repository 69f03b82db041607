// tanh of 16-bit fixed-point numbers by line segments, for AVX-512. Included inside the namespace of an instruction set.
//
// X is quantised once a picture, each channel to its own largest value; then 32 values of tanh cost nine instructions. The
// argument u is in steps of 1/8192 within ±4, beyond which tanh rounds to ±127 / 127. Bits 10 to 15 of u choose one of 64
// lines (TANH_LINES).

// x by `factor`, doubled DOUBLINGS times with saturation at ±4
template <int DOUBLINGS> INLINE __m512i fixed_tanh(__m512i x, __m512i factor) {
    __m512i u = _mm512_mulhrs_epi16(x, factor);
    for (int i = 0; i < DOUBLINGS; i++) u = _mm512_adds_epi16(u, u);
    const __m512i line = _mm512_srli_epi16(u, 10);
    const int16_t *base = TANH_LINES.base, *slope = TANH_LINES.slope;
    const __m512i b = _mm512_permutex2var_epi16(V::load_int(base), line, V::load_int(base + 32));
    const __m512i s = _mm512_permutex2var_epi16(V::load_int(slope), line, V::load_int(slope + 32));
    return _mm512_srli_epi16(_mm512_add_epi16(b, _mm512_mulhrs_epi16(u, s)), 6);
}

// One block of channels, whose arguments |X · label| stay below 4 · 2^DOUBLINGS
template <int DOUBLINGS> void fixed_block(const Picture& picture, const float* label, size_t k, char* operand) {
    const size_t row = row_bytes(INT8, picture.dim);
    int16_t factors[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        // x is in steps of 1/32767 and the product keeps its upper 16 bits
        const float steps = label[k + i] * picture.largest[k + i] * float(8192 >> DOUBLINGS) * (32768.f / 32767.f);
        factors[i] = int16_t(__builtin_lrintf(steps));
    }
    const __m512i first = V::load_int(factors), second = V::load_int(factors + 32);
    const int16_t* x = picture.fixed + k * picture.patches;
    for (int p = 0; p < picture.patches; p++, x += BLOCK) {
        char* out = operand + p * row + k;
        const __m512i low = fixed_tanh<DOUBLINGS>(V::load_int(x), first);
        const __m512i high = fixed_tanh<DOUBLINGS>(V::load_int(x + 32), second);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(low));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), _mm512_cvtepi16_epi8(high));
    }
}

void int8_operand(const Picture& picture, const float* label, char* operand) {
    const size_t dim = size_t(picture.dim), row = row_bytes(INT8, picture.dim);
    for (size_t k = 0; k < dim; k += BLOCK) {
        bool finite = true;
        float most = 0;
        for (int i = 0; i < BLOCK; i++) {
            const float largest = __builtin_fabsf(label[k + i] * picture.largest[k + i]);
            finite = finite && largest < 1e30f;  // NaN is not
            most = largest > most ? largest : most;
        }
        // Just below the power of two, so that no factor rounds to 32768.
        if (finite && most < 7.99f) fixed_block<1>(picture, label, k, operand);
        else if (finite && most < 15.98f) fixed_block<2>(picture, label, k, operand);
        else if (finite && most < 31.96f) fixed_block<3>(picture, label, k, operand);
        else if (finite && most < 63.9f) fixed_block<4>(picture, label, k, operand);
        else
            for (int p = 0; p < picture.patches; p++)
                operand_block<INT8>(picture.rows + p * dim + k, label + k, operand + p * row + k);
    }
}
