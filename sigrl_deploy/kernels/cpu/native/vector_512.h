// Sixteen floats at a time: AVX-512. Included inside the namespace of an instruction set.

struct Vector512 {
    static constexpr int LANES = 16;
    static constexpr int VECTORS = 2;  // of a panel
    static constexpr int ROWS = 14;    // by two vectors: 28 accumulators of 32 registers
    using Float = __m512;
    using Int = __m512i;

    static Float load(const float* at) { return _mm512_loadu_ps(at); }
    static void store(float* at, Float x) { _mm512_storeu_ps(at, x); }
    static Float set(float x) { return _mm512_set1_ps(x); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float below(Float limit, Float x) { return _mm512_min_ps(limit, x); }  // NaN in x stays
    static Float above(Float limit, Float x) { return _mm512_max_ps(limit, x); }
    static Float reciprocal(Float x) { return _mm512_rcp14_ps(x); }
    static Float round(Float x) { return _mm512_roundscale_ps(x, 0); }
    static Float scaled(Float p, Float n) { return _mm512_scalef_ps(p, n); }  // p · 2^n for a whole n

    static Int load_int(const void* at) { return _mm512_loadu_si512(at); }
    static void store_int(void* at, Int x) { _mm512_storeu_si512(at, x); }
    static Int repeat(const char* at) {  // four bytes in every lane
        int32_t x;
        __builtin_memcpy(&x, at, 4);
        return _mm512_set1_epi32(x);
    }
    static Float as_float(Int x) { return _mm512_castsi512_ps(x); }
    static Float to_float(Int x) { return _mm512_cvtepi32_ps(x); }

    static Int dot_int8(Int sum, Int a, Int b) { return _mm512_dpbusd_epi32(sum, a, b); }
    static Float dot_bf16(Float sum, Int a, Int b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

    // 64 values of tanh as 128 + 127 tanh, in bytes
    static void store_int8(const Float* y, char* out) {
        for (int i = 0; i < 4; i++) {
            const Int q = _mm512_add_epi32(_mm512_cvtps_epi32(mul(y[i], set(127.f))), _mm512_set1_epi32(128));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * i), _mm512_cvtepi32_epi8(q));
        }
    }
    static void store_bf16(const Float* y, char* out) {
        store_int(out, (Int)_mm512_cvtne2ps_pbh(y[1], y[0]));
        store_int(out + 64, (Int)_mm512_cvtne2ps_pbh(y[3], y[2]));
    }
};
