// Eight floats at a time: AVX2 with FMA. Included inside the namespace of an instruction set.

struct Vector256 {
    static constexpr int LANES = 8;
    static constexpr int VECTORS = 2;  // of a panel
    static constexpr int ROWS = 6;     // by two vectors: 12 accumulators of 16 registers
    using Float = __m256;
    using Int = __m256i;

    static Float load(const float* at) { return _mm256_loadu_ps(at); }
    static void store(float* at, Float x) { _mm256_storeu_ps(at, x); }
    static Float set(float x) { return _mm256_set1_ps(x); }
    static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static Float below(Float limit, Float x) { return _mm256_min_ps(limit, x); }  // NaN in x stays
    static Float above(Float limit, Float x) { return _mm256_max_ps(limit, x); }
    static Float reciprocal(Float x) { return _mm256_rcp_ps(x); }  // 12 bits
    static Float round(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // p · 2^n for a whole n, where both 2^n and the result are normal numbers
    static Float scaled(Float p, Float n) {
        const Int exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    }

    static Int load_int(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
    static void store_int(void* at, Int x) { _mm256_storeu_si256(static_cast<__m256i*>(at), x); }
    static Int repeat(const char* at) {  // four bytes in every lane
        int32_t x;
        __builtin_memcpy(&x, at, 4);
        return _mm256_set1_epi32(x);
    }
    static Float as_float(Int x) { return _mm256_castsi256_ps(x); }
    static Float to_float(Int x) { return _mm256_cvtepi32_ps(x); }

    // 64 values of tanh as 128 + 127 tanh, in bytes
    static void store_int8(const Float* y, char* out) {
        const Int order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works on each half by itself
        const Int middle = _mm256_set1_epi8(char(0x80));
        for (int i = 0; i < 8; i += 4) {
            Int q[4];
            for (int j = 0; j < 4; j++) q[j] = _mm256_cvtps_epi32(mul(y[i + j], set(127.f)));
            const Int bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
            store_int(out + 8 * i, _mm256_xor_si256(_mm256_permutevar8x32_epi32(bytes, order), middle));
        }
    }
    static void store_bf16(const Float*, char*) {}  // there are no such products
    static Float dot_bf16(Float sum, Int, Int) { return sum; }
};
