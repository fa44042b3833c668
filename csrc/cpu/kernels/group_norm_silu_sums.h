// What the kernels of the norm and of its gradient share. Sums run in fixed lanes and blocks, uncontracted: one result
// on every instruction set and thread count.
#pragma once

#include <cstdint>

#include "../../group_norm_silu.h"
#include "../_group_norm_silu.h"
#include "../simd/isas.h"

EDM_BEGIN
template <typename T>
constexpr int kSumLanes = 128 / sizeof(T);
constexpr int64_t kSumBlock = 2048;    // elements whose sums stay in T, when contiguous
constexpr int64_t kFirst = 128;     // elements whose mean is the first shift
constexpr int64_t kPixels = 64;     // the same for channels last

// m = (x - mean) a + b of one channel of one image
template <typename T>
struct Affine {
    T mean, a, b;
};

// of one group; the mean is mean + lost, so that a large one costs no digits: x - mean rounds nothing near it
template <typename T>
struct Stats {
    T mean;
    double lost, rstd;
};

template <typename T>
EDM_INLINE Stats<T> get_stats(const GroupNormSilu& s, int64_t group) {
    const T* p = static_cast<const T*>(s.stats_ptr) + group;
    return {p[0], double(p[s.n * s.groups]), double(p[2 * s.n * s.groups])};
}

template <typename T>
EDM_INLINE void put_stats(const GroupNormSilu& s, int64_t group, Stats<T> stats) {
    T* p = static_cast<T*>(s.stats_ptr) + group;
    p[0] = stats.mean;
    p[s.n * s.groups] = T(stats.lost);
    p[2 * s.n * s.groups] = T(stats.rstd);
}

template <typename T>
EDM_INLINE Affine<T> affine(const GroupNormSilu& s, int64_t n, int64_t c, Stats<T> stats) {
    const double scale = scale_of<T>(s, n, c), a = stats.rstd * static_cast<const T*>(s.weight_ptr)[c] * scale;
    double b = static_cast<const T*>(s.bias_ptr)[c] * scale - stats.lost * a;
    if (s.shift_ptr) b += static_cast<const T*>(s.shift_ptr)[(s.shift_rows > 1 ? n * s.c : 0) + c];
    return {stats.mean, T(a), T(b)};
}

// halved in T as far as a vector goes, the rest in double
template <typename T>
EDM_INLINE double total(T* lanes) {
    constexpr int half = kSumLanes<T> / 2, quarter = half / 2;
    for (int l = 0; l < quarter; ++l)
        lanes[l] = (lanes[l] + lanes[l + half]) + (lanes[l + quarter] + lanes[l + half + quarter]);
    double sum = 0;
    for (int l = 0; l < quarter; ++l) sum += double(lanes[l]);
    return sum;
}

// Adds to `sum` and `product` the sums of f and f (x - shift) over at most kSumBlock elements; f is x - shift itself
// with Squares, g without.
template <typename T, bool Squares>
EDM_INLINE void shifted_sums(const T* g, const T* x, int64_t n, T shift, double& sum, double& product) {
    constexpr int L = kSumLanes<T>;
    int64_t i = 0;
    if (n >= 2 * L) {
        T u[L], v[L];
        for (int l = 0; l < L; ++l) {
            const T d = x[l] - shift, d2 = x[L + l] - shift, f = Squares ? d : g[l], f2 = Squares ? d2 : g[L + l];
            u[l] = f + f2;
            v[l] = f * d + f2 * d2;
        }
#pragma GCC unroll 1
        for (i = 2 * L; i + L <= n; i += L)
            for (int l = 0; l < L; ++l) {
                const T d = x[i + l] - shift, f = Squares ? d : g[i + l];
                u[l] += f;
                v[l] += f * d;
            }
        sum += total(u);
        product += total(v);
    }
    for (; i < n; ++i) {
        const T d = x[i] - shift, f = Squares ? d : g[i];
        sum += f;
        product += f * d;
    }
}

template <typename T>
EDM_INLINE void apply(T* EDM_RESTRICT y, const T* x, Affine<T> f, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - f.mean) * f.a + f.b;
}

template <typename T>
EDM_INLINE void apply_last(T* EDM_RESTRICT y, const T* x, const T* mean, const T* a, const T* b, int64_t width) {
    for (int64_t c = 0; c < width; ++c) y[c] = (x[c] - mean[c]) * a[c] + b[c];
}
EDM_END
