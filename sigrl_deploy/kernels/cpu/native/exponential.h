// 2^z and tanh, of one vector. Included inside the namespace of an instruction set, after its `V`.

// Polynomials for 2^f, |f| ≤ 1/2, with the least relative error: 7.5e-5, 2.6e-6 and 7.5e-8.
template <Precision> struct Polynomial;
template <> struct Polynomial<INT8> {
    static constexpr int DEGREE = 3;
    static constexpr float C[] = {0.999928074f, 0.693260986f, 0.242611122f, 0.0551716672f};
};
template <> struct Polynomial<BF16> {
    static constexpr int DEGREE = 4;
    static constexpr float C[] = {0.999999261f, 0.693121815f, 0.240247448f, 0.0559178603f, 0.0095701017f};
};
template <> struct Polynomial<FP32> {
    static constexpr int DEGREE = 5;
    static constexpr float C[] = {1.00000007f, 0.693146967f, 0.240221197f, 0.0555071327f, 0.00967554133f, 0.00132764718f};
};

// 2^z for |z| ≤ 126
template <Precision PRECISION> INLINE V::Float exp2(V::Float z) {
    using P = Polynomial<PRECISION>;
    const V::Float n = V::round(z), f = V::sub(z, n);
    V::Float p = V::set(P::C[P::DEGREE]);
    for (int i = P::DEGREE - 1; i >= 0; i--) p = V::fma(p, f, V::set(P::C[i]));
    return V::scaled(p, n);
}

template <Precision PRECISION> INLINE V::Float tanh(V::Float u) {
    // 1 - 2 / (1 + e^2u); beyond ±126 powers of two it is ±1 in any precision
    V::Float z = V::mul(u, V::set(2 * LOG2_E));
    z = V::above(V::set(-126.f), V::below(V::set(126.f), z));
    const V::Float d = V::add(exp2<PRECISION>(z), V::set(1.f));
    const V::Float r = PRECISION == FP32 ? V::div(V::set(1.f), d) : V::reciprocal(d);
    return V::fma(r, V::set(-2.f), V::set(1.f));
}
