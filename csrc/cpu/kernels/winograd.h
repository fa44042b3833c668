// The transforms of Winograd's F(M x N, R x R) (Lavin & Gray 2016): y = A^T [(G g G^T) (B^T d B)] A, on vectors of
// channels; rows take those of F(M, R), columns those of F(N, R). Built for the points (0,) +-a, (+-b, ...) infinity by
// the Cook-Toom construction: B^T holds the coefficients of prod (x - q) over the other points, G the powers of the
// point over prod (p - q), A^T its powers. The points are short numbers, so that B^T and A^T are exact in float32 or
// nearly so, and lie where the rounding error is smallest: for F(4x4, 3x3) half of that of the usual 1 and 2
// (benchmarks/NOTES.md).
#pragma once

#include <cstdint>
#include <utility>

#include "../../conv2d.h"
#include "../_conv2d.h"
#include "../_layout.h"
#include "../_pairs.h"
#include "../simd/vector.h"

EDM_BEGIN
// F(M, R) of one line: M outputs from kPoints products with filters of R taps; input() gives the rows of B^T in kPasses
template <int M, int R = 3>
struct Winograd;

template <>
struct Winograd<2, 3> {
    static constexpr int kOutputs = 2, kTaps = 3, kPoints = 4, kPasses = 1;
    // B^T of one line of 4
    template <int Pass>
    static inline void input(const V* d, V* v) {
        v[0] = d[2] - d[0];
        v[1] = d[1] + d[2];
        v[2] = d[2] - d[1];
        v[3] = d[3] - d[1];
    }
    static inline void output(const V* m, V* y) {
        const V sum = m[1] + m[2], difference = m[1] - m[2];
        y[0] = m[0] + sum;
        y[1] = difference + m[3];
    }
    // G of one line of 3
    static inline void weights(const V* g, V* u) {
        const V half = set1(0.5f), even = (g[0] + g[2]) * half, odd = g[1] * half;
        u[0] = V{} - g[0];
        u[1] = even + odd;
        u[2] = even - odd;
        u[3] = g[2];
    }
};

template <>
struct Winograd<4, 3> {
    static constexpr int kOutputs = 4, kTaps = 3, kPoints = 6, kPasses = 2;
    static constexpr float a = 0.6875f, b = 1.5f, a2 = a * a, b2 = b * b;
    // the first or the last three rows of B^T of one line of 6
    template <int Pass>
    static inline void input(const V* d, V* v) {
        const V sum = set1(a2 + b2), product = set1(a2 * b2);
        const V point = set1(Pass ? b : a), other = set1(Pass ? a2 : b2);
        const V even = fnma(other, d[2], d[4]), odd = point * fnma(other, d[1], d[3]);
        v[Pass ? 0 : 1] = even + odd;
        v[Pass ? 1 : 2] = even - odd;
        v[Pass ? 2 : 0] = fma(product, d[Pass], fnma(sum, d[2 + Pass], d[4 + Pass]));
    }
    static inline void output(const V* m, V* y) {
        const V plus_a = m[1] + m[2], minus_a = m[1] - m[2], plus_b = m[3] + m[4], minus_b = m[3] - m[4];
        y[0] = m[0] + plus_a + plus_b;
        y[1] = fma(set1(a), minus_a, set1(b) * minus_b);
        y[2] = fma(set1(a2), plus_a, set1(b2) * plus_b);
        y[3] = fma(set1(a2 * a), minus_a, fma(set1(b2 * b), minus_b, m[5]));
    }
    // A of one line of the gradients of 4 outputs
    static inline void gradient(const V* y, V* m) {
        const V even_a = fma(set1(a2), y[2], y[0]), odd_a = set1(a) * fma(set1(a2), y[3], y[1]);
        const V even_b = fma(set1(b2), y[2], y[0]), odd_b = set1(b) * fma(set1(b2), y[3], y[1]);
        m[0] = y[0];
        m[1] = even_a + odd_a;
        m[2] = even_a - odd_a;
        m[3] = even_b + odd_b;
        m[4] = even_b - odd_b;
        m[5] = y[3];
    }
    // G^T of one line of 6; elements lie `from` and `step` apart
    static inline void weight_gradient(const float* u, float* g, int64_t from, int64_t step) {
        constexpr double qa = double(a) * a, qb = double(b) * b;
        constexpr float sa = float(1 / (2 * qa * (qa - qb))), sb = float(1 / (2 * qb * (qb - qa)));
        constexpr float s0 = float(1 / (qa * qb));
        const float plus_a = (u[from] + u[2 * from]) * sa, minus_a = (u[from] - u[2 * from]) * sa;
        const float plus_b = (u[3 * from] + u[4 * from]) * sb, minus_b = (u[3 * from] - u[4 * from]) * sb;
        g[0] = u[0] * s0 + plus_a + plus_b;
        g[step] = minus_a * a + minus_b * b;
        g[2 * step] = plus_a * a2 + plus_b * b2 + u[5 * from];
    }
    static inline void weights(const V* g, V* u) {
        constexpr double qa = double(a) * a, qb = double(b) * b;
        u[0] = g[0] * set1(float(1 / (qa * qb)));
        weights_at<0>(g, u, a, 2 * qa * (qa - qb));
        weights_at<1>(g, u, b, 2 * qb * (qb - qa));
        u[5] = g[2];
    }

  private:
    // the rows of G for the points +-p: (g0 +- p g1 + p^2 g2) / d
    template <int Pair>
    static inline void weights_at(const V* g, V* u, double p, double d) {
        const V even = fma(set1(float(p * p / d)), g[2], g[0] * set1(float(1 / d))), odd = g[1] * set1(float(p / d));
        u[1 + 2 * Pair] = even + odd;
        u[2 + 2 * Pair] = even - odd;
    }
};

// of[j][i] is point i to the power of j
template <int Exponents, int Points>
struct Powers {
    float of[Exponents][Points] = {};
    constexpr Powers(const float (&points)[Points]) {
        for (int j = 0; j < Exponents; ++j)
            for (int i = 0; i < Points; ++i) of[j][i] = j ? of[j - 1][i] * points[i] : 1;
    }
};

// Ten products for eight outputs where F(4, 3) takes twelve, at five times its rounding error as columns of F(4x8,
// 3x3); of two taps nine where F(4, 2) takes ten. Filters of three taps have the point 0 as well.
template <int R>
struct Winograd<8, R> {
    static constexpr int kOutputs = 8, kTaps = R, kPoints = R + 7, kPasses = 1;
    static constexpr Powers<kOutputs, 4> powers = R == 3 ? Powers<kOutputs, 4>({0.4375f, 0.8125f, 1.25f, 2.25f})
                                                         : Powers<kOutputs, 4>({0.25f, 0.6875f, 1.125f, 2.125f});
    template <int Pass>
    static inline void input(const V* d, V* v) {
        constexpr float a = square(0), b = square(1), c = square(2), e = square(3);
        const V s1 = set1(a + b + c + e), s2 = set1(a * b + (a + b) * (c + e) + c * e);
        const V s3 = set1(a * b * (c + e) + (a + b) * c * e), s4 = set1(a * b * c * e);
        const auto product = [&](const V* x) __attribute__((always_inline)) {
            return fma(s4, x[0], fnma(s3, x[2], fma(s2, x[4], fnma(s1, x[6], x[8]))));
        };
        if constexpr (kFirst == 1) v[0] = product(d);
        v[kPoints - 1] = product(d + kFirst);
        input_at<0, 1, 2, 3>(d + kFirst, v + kFirst);
        input_at<1, 0, 2, 3>(d + kFirst, v + kFirst);
        input_at<2, 0, 1, 3>(d + kFirst, v + kFirst);
        input_at<3, 0, 1, 2>(d + kFirst, v + kFirst);
    }
    static inline void output(const V* m, V* y) {
        V sum[4], difference[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            sum[i] = m[kFirst + 2 * i] + m[kFirst + 1 + 2 * i];
            difference[i] = m[kFirst + 2 * i] - m[kFirst + 1 + 2 * i];
        }
        y[0] = (kFirst ? m[0] + sum[0] : sum[0]) + (sum[1] + sum[2]) + sum[3];
#pragma GCC unroll 8
        for (int j = 1; j < 8; ++j) {
            const V* of = j % 2 ? difference : sum;
            const float* power = powers.of[j];
            y[j] = fma(set1(power[0]), of[0],
                       fma(set1(power[1]), of[1], fma(set1(power[2]), of[2], set1(power[3]) * of[3])));
        }
        y[7] = y[7] + m[kPoints - 1];
    }
    static inline void weights(const V* g, V* u) {
        if constexpr (kFirst == 1)
            u[0] = g[0] * set1(float(1 / (double(square(0)) * square(1) * square(2) * square(3))));
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const double p = powers.of[1][i], q = p * p;
            double d = 2 * (kFirst ? q : p);
            for (int j = 0; j < 4; ++j)
                if (j != i) d *= q - square(j);
            d *= size[i];
            const V first = g[0] * set1(float(1 / d)), odd = g[1] * set1(float(p / d));
            const V even = kFirst ? fma(set1(float(q / d)), g[R - 1], first) : first;
            u[kFirst + 2 * i] = even + odd;
            u[kFirst + 1 + 2 * i] = kFirst ? odd - even : even - odd;
        }
        u[kPoints - 1] = g[R - 1];
    }

  private:
    static constexpr int kFirst = R - 2;  // of the pairs: behind the point 0
    // Rows of B^T are multiplied by powers of two, those of G divided by them (and one of each pair has another sign),
    // so that the factors of all products have about the same ratio of their sizes.
    static constexpr float size[4] = {1, 1, 0.5f, 0.125f};
    static constexpr float square(int i) { return powers.of[1][i] * powers.of[1][i]; }
    // the rows of B^T for the points +-p[I] with p = powers.of[1]; J, K, L are the other pairs
    template <int I, int J, int K, int L>
    static inline void input_at(const V* d, V* v) {
        constexpr float a = square(J), b = square(K), c = square(L);
        const V s1 = set1(a + b + c), s2 = set1(a * b + (a + b) * c), s3 = set1(a * b * c);
        const V even = fnma(s3, d[1], fma(s2, d[3], fnma(s1, d[5], d[7])));
        const V odd = set1(powers.of[1][I] * size[I]) * fnma(s3, d[0], fma(s2, d[2], fnma(s1, d[4], d[6])));
        v[2 * I] = fma(set1(size[I]), even, odd);
        v[1 + 2 * I] = fnma(set1(size[I]), even, odd);
    }
};

// points 0, 1, infinity
template <>
struct Winograd<2, 2> {
    static constexpr int kOutputs = 2, kTaps = 2, kPoints = 3, kPasses = 1;
    template <int Pass>
    static inline void input(const V* d, V* v) {
        v[0] = d[1] - d[0];
        v[1] = d[1];
        v[2] = d[2] - d[1];
    }
    static inline void output(const V* m, V* y) {
        y[0] = m[0] + m[1];
        y[1] = m[1] + m[2];
    }
    static inline void weights(const V* g, V* u) {
        u[0] = V{} - g[0];
        u[1] = g[0] + g[1];
        u[2] = g[1];
    }
};

template <>
struct Winograd<4, 2> {
    static constexpr int kOutputs = 4, kTaps = 2, kPoints = 5, kPasses = 1;
    static constexpr float a = 0.375f, b = 1.25f, a2 = a * a, b2 = b * b;
    template <int Pass>
    static inline void input(const V* d, V* v) {
        const V va2 = set1(a2), vb2 = set1(b2);
        const V odd_a = fnma(vb2, d[1], d[3]), even_a = set1(a) * fnma(vb2, d[0], d[2]);
        const V odd_b = fnma(va2, d[1], d[3]), even_b = set1(b) * fnma(va2, d[0], d[2]);
        v[0] = odd_a + even_a;
        v[1] = odd_a - even_a;
        v[2] = odd_b + even_b;
        v[3] = odd_b - even_b;
        v[4] = fma(set1(a2 * b2), d[0], fnma(set1(a2 + b2), d[2], d[4]));
    }
    static inline void output(const V* m, V* y) {
        const V plus_a = m[0] + m[1], minus_a = m[0] - m[1], plus_b = m[2] + m[3], minus_b = m[2] - m[3];
        y[0] = plus_a + plus_b;
        y[1] = fma(set1(a), minus_a, set1(b) * minus_b);
        y[2] = fma(set1(a2), plus_a, set1(b2) * plus_b);
        y[3] = fma(set1(a2 * a), minus_a, fma(set1(b2 * b), minus_b, m[4]));
    }
    static inline void weights(const V* g, V* u) {
        constexpr double qa = double(a) * a, qb = double(b) * b;
        constexpr double sa = 1 / (2 * a * (qa - qb)), sb = 1 / (2 * b * (qb - qa));
        const V even_a = g[0] * set1(float(sa)), odd_a = g[1] * set1(float(a * sa));
        const V even_b = g[0] * set1(float(sb)), odd_b = g[1] * set1(float(b * sb));
        u[0] = odd_a + even_a;
        u[1] = odd_a - even_a;
        u[2] = odd_b + even_b;
        u[3] = odd_b - even_b;
        u[4] = g[1];
    }
};

// all rows of B^T of one line
template <class F>
static EDM_INLINE void transform_input(const V* d, V* v) {
    F::template input<0>(d, v);
    if constexpr (F::kPasses > 1) F::template input<1>(d, v + F::kPoints / 2);
}

// One row of planes, u (Q, count, kPanel) = row `Row` of G g G^T, from filters (count, R, R, kPanel); planes lie `step`
// floats apart. Paired: in the order of their places, times the scales of their inputs and of the panel's outputs.
template <class Rows, class Columns, int Row, bool Paired = false>
static void transform_weights(const float* filters, int64_t count, float* u, int64_t step,
                              const float* inputs = nullptr, const float* outputs = nullptr) {
    constexpr int P = Rows::kPoints, Q = Columns::kPoints, R = Rows::kTaps;
    for (int64_t place = 0; place < count; ++place, u += kPanel) {
        const int64_t term = Paired ? term_at(place, count) : place;
        const float* g = filters + term * R * R * kPanel;
        for (int k = 0; k < kPanel; k += kLanes) {
            const V factor = Paired ? set1(inputs[term]) * load(outputs + k) : V{};
            V row[R], t[R], line[Q > P ? Q : P];
#pragma GCC unroll 3
            for (int j = 0; j < R; ++j) {
#pragma GCC unroll 3
                for (int i = 0; i < R; ++i) {
                    t[i] = load(g + (i * R + j) * kPanel + k);
                    if constexpr (Paired) t[i] = t[i] * factor;
                }
                Rows::weights(t, line);
                row[j] = line[Row];
            }
            Columns::weights(row, line);
#pragma GCC unroll 10
            for (int j = 0; j < Q; ++j) store(u + j * step + k, line[j]);
        }
    }
}

// f(Rows(), Columns()) with the transforms of an algorithm: the branches are the tiles of the list
template <size_t Row = 0, class F>
static inline void with_transforms(const Algorithm& algorithm, F&& f) {
    constexpr Algorithm row = kAlgorithms[Row];
    if constexpr (row.transforms() && is_first_of_its_transform(Row)) {
        if (algorithm.same_transform(row))
            return f(Winograd<row.tile.rows, row.taps(3)>(), Winograd<row.tile.columns, row.taps(3)>());
    }
    if constexpr (Row + 1 < std::size(kAlgorithms)) with_transforms<Row + 1>(algorithm, f);
}

template <class F, int... I>
static inline void each_of(std::integer_sequence<int, I...>, F&& f) {
    (f(std::integral_constant<int, I>()), ...);
}
EDM_END
