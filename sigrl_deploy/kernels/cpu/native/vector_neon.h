// Four floats at a time: NEON. Included inside the namespace of an instruction set.

struct VectorNeon {
    static constexpr int LANES = 4;
    static constexpr int VECTORS = 4;  // of a panel
    static constexpr int ROWS = 6;     // by four vectors: 24 accumulators of 32 registers
    using Float = float32x4_t;
    using Int = int32x4_t;

    static Float load(const float* at) { return vld1q_f32(at); }
    static void store(float* at, Float x) { vst1q_f32(at, x); }
    static Float set(float x) { return vdupq_n_f32(x); }
    static Float add(Float a, Float b) { return vaddq_f32(a, b); }
    static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
    static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
    static Float div(Float a, Float b) { return vdivq_f32(a, b); }
    static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
    static Float below(Float limit, Float x) { return vminq_f32(limit, x); }  // NaN stays
    static Float above(Float limit, Float x) { return vmaxq_f32(limit, x); }
    static Float reciprocal(Float x) {  // 16 bits, by one step of Newton from 8
        const Float r = vrecpeq_f32(x);
        return mul(r, vrecpsq_f32(x, r));
    }
    static Float round(Float x) { return vrndnq_f32(x); }
    // p · 2^n for a whole n, where both 2^n and the result are normal numbers
    static Float scaled(Float p, Float n) {
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
    }

    static Int load_int(const void* at) { return vld1q_s32(static_cast<const int32_t*>(at)); }
    static void store_int(void* at, Int x) { vst1q_s32(static_cast<int32_t*>(at), x); }
    static Int repeat(const char* at) {  // four bytes in every lane
        int32_t x;
        __builtin_memcpy(&x, at, 4);
        return vdupq_n_s32(x);
    }
    static Float as_float(Int x) { return vreinterpretq_f32_s32(x); }
    static Float to_float(Int x) { return vcvtq_f32_s32(x); }

    // No load moves across it. Compilers would load so far ahead that accumulators lose their registers.
    static INLINE void keep_order() { __asm__ volatile("" ::: "memory"); }

    // sum + right by one lane of left. Of the intrinsics GCC repeats the lane in a register of its own, and moves sums about.
    template <int LANE> static Float fma_lane(Float sum, Int left, Float right) {
        __asm__("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(sum) : "w"(right), "w"(left), "i"(LANE));
        return sum;
    }
    template <int LANE = 0> static Int dot_int8(Int sum, Int left, Int right) {
        __asm__("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(right), "w"(left), "i"(LANE));
        return sum;
    }

    // 64 values of tanh as 127 tanh, in bytes
    static void store_int8(const Float* y, char* out) {
        for (int i = 0; i < 16; i += 4) {
            int16x8_t q[4];
            for (int j = 0; j < 4; j++) q[j] = vreinterpretq_s16_s32(vcvtnq_s32_f32(mul(y[i + j], set(127.f))));
            const int16x8_t low = vuzp1q_s16(q[0], q[1]), high = vuzp1q_s16(q[2], q[3]);
            vst1q_s8(reinterpret_cast<int8_t*>(out + 4 * i), vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
        }
    }
    static void store_bf16(const Float*, char*) {}  // there are no such products
    static Float dot_bf16(Float sum, Int, Int) { return sum; }
};
