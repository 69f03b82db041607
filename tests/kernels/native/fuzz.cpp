// Random shapes and numbers through every instruction set that is there, against sums in double. Built with sanitizers, for x86
// with `emulated.h`.
//
//     fuzz FIRST COUNT    prints the instruction sets' names, then one line for each case that errs by too much, and exits with
//                         1 if there was one
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

extern "C" {
int sigrl_has(int set);
int sigrl_has_bf16(int set);
int sigrl_largest_weight(int set);
void* sigrl_svfr_open(const float*, const float*, const float*, int, int, int, int, int);
void sigrl_svfr_close(void*);
int sigrl_svfr_run(void*, const float*, int, int, int, const float*, const float*, int, float*);
}

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

const std::vector<const char*> SETS{"avx2", "avx-vnni", "avx512", "amx", "neon", "i8mm"};  // as in kernels.h

// AMX itself only on request, as for users; its emulation always.
bool wanted(int set) {
#if defined(SIGRL_EMULATED)
    const bool emulated = true;
#else
    const bool emulated = false;
#endif
    return sigrl_has(set) && (emulated || std::string(SETS[size_t(set)]) != "amx");
}

struct Case {
    int dim, patches, labels, threads;
    float size;  // of the weights: from 6 on the maximum over the patches is subtracted
    Floats x, t, g, w1, wa, w2;

    explicit Case(std::mt19937& random) {
        const auto any = [&](int from, int to) { return std::uniform_int_distribution<int>(from, to)(random); };
        dim = any(0, 3) ? any(1, 140) : 64 * any(1, 2);
        patches = any(0, 3) ? any(1, 40) : 16 * any(1, 5);
        labels = any(1, 9);
        threads = any(1, 3);
        size = std::vector<float>{0.3f, 1, 1, 30}[size_t(any(0, 3))];
        std::normal_distribution<float> normal;
        const auto draw = [&](int rows, float scale) {
            Floats values(size_t(rows) * size_t(dim));
            for (float& value : values) value = normal(random) * scale;
            return values;
        };
        const float weight = size / std::sqrt(3.f * float(dim));
        const float stretch = any(0, 9) ? 1 : 20;  // now and then beyond what tanh tells from 1
        x = draw(patches, 1);
        t = draw(labels, 0.5f * stretch);
        g = draw(labels, 0.5f * stretch);
        w1 = draw(dim, weight);
        wa = draw(dim, weight);
        w2 = draw(dim, weight);
        if (any(0, 4) == 0) std::fill_n(t.begin(), dim, 0.f);
        if (any(0, 4) == 0)
            for (int p = 0; p < patches; p++) x[size_t(p) * size_t(dim)] = 0;
    }

    // softmax over the patches of tanh(X ⊙ row) W, [P, D]
    Doubles attention(const Floats& w, const double* row) const {
        Doubles e(x.size(), 0.0);
        for (int p = 0; p < patches; p++)
            for (int j = 0; j < dim; j++) {
                const double a = std::tanh(double(x[size_t(p * dim + j)]) * row[j]);
                for (int d = 0; d < dim; d++) e[size_t(p * dim + d)] += a * double(w[size_t(j * dim + d)]);
            }
        for (int d = 0; d < dim; d++) {
            double most = -1e300, sum = 0;
            for (int p = 0; p < patches; p++) most = std::max(most, e[size_t(p * dim + d)]);
            for (int p = 0; p < patches; p++) sum += std::exp(e[size_t(p * dim + d)] - most);
            for (int p = 0; p < patches; p++) e[size_t(p * dim + d)] = std::exp(e[size_t(p * dim + d)] - most) / sum;
        }
        return e;
    }

    // Y / X, the sum over the labels of stage 2
    Doubles weights() const {
        const size_t n = size_t(dim);
        Doubles s(size_t(labels) * n, 0.0), r(n * n, 0.0), v(size_t(labels) * n);
        for (int c = 0; c < labels; c++) {
            const Doubles row(t.begin() + c * dim, t.begin() + (c + 1) * dim);
            const Doubles a = attention(w1, row.data());
            for (size_t i = 0; i < a.size(); i++) s[size_t(c) * n + i % n] += a[i] * double(x[i]);
        }
        for (size_t i = 0; i < n; i++) {
            double norm = 0;
            for (size_t j = 0; j < n; j++) {
                for (size_t c = 0; c < size_t(labels); c++) r[i * n + j] += s[c * n + i] * double(t[c * n + j]);
                r[i * n + j] = std::max(r[i * n + j], 0.0);
                norm += r[i * n + j] * r[i * n + j];
            }
            for (size_t j = 0; j < n && norm > 0; j++) r[i * n + j] /= std::sqrt(norm);
        }
        for (size_t c = 0; c < size_t(labels); c++) {
            Doubles o(n, 0.0);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n; j++) o[j] += s[c * n + i] * r[i * n + j];
            for (size_t d = 0; d < n; d++) {
                v[c * n + d] = double(g[c * n + d]);
                for (size_t j = 0; j < n; j++) v[c * n + d] += o[j] * double(wa[j * n + d]);
            }
        }
        Doubles sum(x.size(), 0.0);
        for (int c = 0; c < labels; c++) {
            const Doubles a = attention(w2, v.data() + c * dim);
            for (size_t i = 0; i < a.size(); i++) sum[i] += a[i];
        }
        return sum;
    }
};

// The largest error of Y allowed, relative to how far its weights are from uniform ones. fp32: its sums are of some hundred
// terms of 6e-8 each, and energies of 30 multiply that. bf16: 8 bits of tanh and of W. int8: both in steps of 1/127, or of 1/63
// without VNNI; random weights of size 1 err by 0.4 and 0.8 % (512 channels), and few channels or strong weights by more. Of one channel
// tanh may be less than a step.
double tolerance(int precision, float size, int dim) {
    const double large = size > 1 || (precision == 2 && dim == 1) ? 10 : 1;
    return large * (precision == 0 ? 1e-5 : precision == 1 ? 0.01 : 0.04);
}

bool runs(const Case& made, const Doubles& weights, int set, int precision) {
    void* svfr = sigrl_svfr_open(
        made.w1.data(), made.wa.data(), made.w2.data(), made.dim, set, precision, sigrl_largest_weight(set), made.threads);
    Floats twice(made.x);
    twice.insert(twice.end(), made.x.begin(), made.x.end());
    Floats y(twice.size(), NAN), other(twice.size(), NAN);
    const auto run = [&](Floats& out) {
        if (!sigrl_svfr_run(
                svfr, twice.data(), 2, made.patches, made.dim, made.t.data(), made.g.data(), made.labels, out.data()))
            std::abort();
    };
    std::thread beside(run, std::ref(other));  // two callers share the threads
    run(y);
    beside.join();
    sigrl_svfr_close(svfr);
    double error = 0, spread = 0, norm = 0;
    for (size_t i = 0; i < made.x.size(); i++) {
        const double x = double(made.x[i]), uniform = double(made.labels) / made.patches;
        error += std::pow(double(y[i]) - x * weights[i], 2);
        spread += std::pow(x * (weights[i] - uniform), 2);
        norm += std::pow(x * weights[i], 2);
    }
    // Of one patch all weights are 1, and there is nothing to be relative to.
    const double allowed = tolerance(precision, made.size, made.dim) * std::sqrt(spread) + 2e-6 * std::sqrt(norm);
    const bool same = std::equal(y.begin(), y.begin() + std::ptrdiff_t(made.x.size()), y.begin() + std::ptrdiff_t(made.x.size()));
    if (std::sqrt(error) <= allowed && same && y == other) return true;
    std::printf(
        "%s, precision %d: D %d, P %d, C %d, weights %g: error %g of %g allowed%s%s\n", SETS[size_t(set)], precision, made.dim,
        made.patches, made.labels, double(made.size), std::sqrt(error), allowed, same ? "" : "; depends on the batch",
        y == other ? "" : "; differs between callers");
    return false;
}

}  // namespace

int main(int, char** arguments) {
    const int first = std::atoi(arguments[1]), count = std::atoi(arguments[2]);
    std::vector<int> sets;
    for (int set = 0; set < int(SETS.size()); set++)
        if (wanted(set)) sets.push_back(set);
    for (int set : sets) std::printf("%s ", SETS[size_t(set)]);
    std::puts("");
    bool fine = true;
    for (int seed = first; seed < first + count; seed++) {
        std::mt19937 random{unsigned(seed)};
        const Case made(random);
        const Doubles weights = made.weights();
        for (int set : sets)
            for (int precision = 0; precision < 3; precision++)
                if (precision != 1 || sigrl_has_bf16(set)) fine = runs(made, weights, set, precision) && fine;
    }
    return fine ? 0 : 1;
}
