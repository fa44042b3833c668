// With g = dy silu'(m), P = sum g and Q = sum g (x - mean) rstd over the pixels of a channel, and A = weight
// (scale + 1):   dx = rstd (g A - mean_group(A P) - (x - mean) rstd mean_group(A Q))
//                dshift = P, dscale = weight Q + bias P, dweight = sum_n (scale + 1) Q, dbias = sum_n (scale + 1) P
// Its first pass leaves g in dx, so that the exponential is evaluated once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../group_norm_silu.h"
#include "../_group_norm_silu.h"
#include "../simd/isas.h"
#include "exp.h"
#include "group_norm_silu_sums.h"

EDM_BEGIN
// g = dy silu'(m), with silu'(m) = s + m s (1 - s), s = sigmoid(m), and m given in g; n <= kStage
template <typename T>
EDM_INLINE void times_slope(T* EDM_RESTRICT g, const T* dy, int64_t n) {
    T e[kStage];
    exp_minus_abs(e, g, n);
    for (int64_t i = 0; i < n; ++i) {
        const T q = T(1) / (T(1) + e[i]);  // s above 0; below it s is e q
        g[i] = dy[i] * ((g[i] < T(0) ? e[i] * q : q) + g[i] * ((e[i] * q) * q));
    }
}

// g of one group into dx, and P, Q of its channels
template <typename T>
EDM_INLINE void first_pass(const GroupNormSilu& s, T* dx, const T* x, const T* dy, int64_t n, int64_t first,
                           Stats<T> stats, double* P, double* Q) {
    const int64_t per_group = s.c / s.groups, size = per_group * s.space;
    if (!s.silu) std::copy(dy, dy + size, dx);
    int64_t done = 0;  // channels
    for (int64_t c = 0; c < per_group; ++c) {
        if (s.silu)
            apply(dx + c * s.space, x + c * s.space, affine(s, n, first + c, stats), s.space);
        const int64_t begin = done * s.space, end = (c + 1) * s.space;
        if (end - begin < kSumBlock / 2 && end < size) continue;
        for (int64_t i = begin; s.silu && i < end; i += kStage) times_slope(dx + i, dy + i, std::min(kStage, end - i));
        for (; done <= c; ++done) {
            const int64_t at = done * s.space;
            for (int64_t i = 0; i < s.space; i += kSumBlock)
                shifted_sums<T, false>(dx + at + i, x + at + i, std::min(kSumBlock, s.space - i), stats.mean, P[done],
                                       Q[done]);
            Q[done] = (Q[done] - stats.lost * P[done]) * stats.rstd;
        }
    }
}

template <typename T>
EDM_INLINE void second_pass(T* EDM_RESTRICT dx, const T* x, T mean, T alpha, T beta, T gamma, int64_t n) {
    for (int64_t i = 0; i < n; ++i) dx[i] = (dx[i] * alpha - beta) - (x[i] - mean) * gamma;
}

template <typename T>
static void backward(const GroupNormSilu& s, double* P, int64_t, int64_t begin, int64_t end) {
    const int64_t per_group = s.c / s.groups;
    const T* weight = static_cast<const T*>(s.weight_ptr);
    double* Q = P + s.n * s.c;
    for (int64_t item = begin; item < end; ++item) {  // (n, groups)
        const int64_t n = item / s.groups, first = item % s.groups * per_group, offset = n * s.c + first;
        const T* x = static_cast<const T*>(s.x_ptr) + offset * s.space;
        const T* dy = static_cast<const T*>(s.dy_ptr) + offset * s.space;
        T* dx = static_cast<T*>(s.dx_ptr) + offset * s.space;
        const Stats<T> stats = get_stats<T>(s, item);
        const double rstd = stats.rstd;
        double beta = 0, gamma = 0;
        first_pass(s, dx, x, dy, n, first, stats, P + offset, Q + offset);
        for (int64_t c = 0; c < per_group; ++c) {
            const double scaled = weight[first + c] * scale_of<T>(s, n, first + c);
            beta += scaled * P[offset + c];
            gamma += scaled * Q[offset + c];
        }
        gamma *= rstd * rstd / double(per_group * s.space);
        beta = beta * rstd / double(per_group * s.space) - stats.lost * gamma;
        for (int64_t c = 0; c < per_group; ++c) {
            const T alpha = T(rstd * weight[first + c] * scale_of<T>(s, n, first + c));
            second_pass(dx + c * s.space, x + c * s.space, stats.mean, alpha, T(beta), T(gamma), s.space);
        }
    }
}

// one pixel; u, v: sums per channel
template <typename T, bool Silu>
EDM_INLINE void first_pass_last(T* EDM_RESTRICT dx, T* EDM_RESTRICT u, T* EDM_RESTRICT v, const T* x, const T* dy,
                                const T* mean, const T* a, const T* b, int64_t width) {
    if (Silu) {
        apply_last(dx, x, mean, a, b, width);
        for (int64_t c = 0; c < width; c += kStage) times_slope(dx + c, dy + c, std::min(kStage, width - c));
    } else {
        std::copy(dy, dy + width, dx);
    }
    for (int64_t c = 0; c < width; ++c) {
        u[c] += dx[c];
        v[c] += dx[c] * (x[c] - mean[c]);
    }
}

template <typename T>
EDM_INLINE void second_pass_last(T* EDM_RESTRICT dx, const T* x, const T* mean, const T* alpha, const T* beta,
                                 const T* gamma, int64_t width) {
    for (int64_t c = 0; c < width; ++c) dx[c] = (dx[c] * alpha[c] - beta[c]) - (x[c] - mean[c]) * gamma[c];
}

template <typename T>
EDM_INLINE void first_slab(const GroupNormSilu& s, const Slab<T>& slab, T* scratch, double* p, double* q) {
    const int64_t width = slab.width;
    const T *x = static_cast<const T*>(s.x_ptr) + slab.offset, *dy = static_cast<const T*>(s.dy_ptr) + slab.offset;
    T* dx = static_cast<T*>(s.dx_ptr) + slab.offset;
    T *mean = scratch, *a = mean + width, *b = a + width, *u = b + width, *v = u + width;
    std::fill(p, p + width, 0.0);
    std::fill(q, q + width, 0.0);
    for (int64_t p0 = 0; p0 < s.space; p0 += kPixels) {
        std::fill(u, u + 2 * width, T(0));
        for (int64_t i = p0; i < std::min(s.space, p0 + kPixels); ++i) {
            const int64_t at = i * s.c;
            if (s.silu)
                first_pass_last<T, true>(dx + at, u, v, x + at, dy + at, mean, a, b, width);
            else
                first_pass_last<T, false>(dx + at, u, v, x + at, dy + at, mean, a, b, width);
        }
        for (int64_t c = 0; c < width; ++c) {
            p[c] += u[c];
            q[c] += v[c];
        }
    }
}

template <typename T>
static void backward_last(const GroupNormSilu& s, double* P, int64_t most, int64_t begin, int64_t end) {
    const int64_t per_group = s.c / s.groups;
    const T* weight = static_cast<const T*>(s.weight_ptr);
    std::vector<double> doubles(2 * most);
    std::vector<T> scratch(5 * most);
    double *p = doubles.data(), *q = p + most;
    for (int64_t item = begin; item < end; ++item) {
        const Slab<T> slab(s, most, item);
        const int64_t width = slab.width, row = slab.n * s.c + slab.first;
        const int64_t group0 = slab.n * s.groups + slab.first / per_group;
        T *mean = scratch.data(), *alpha = mean + width, *b = alpha + width, *beta = b + width, *gamma = beta + width;
        for (int64_t c = 0; c < width; ++c) {
            const Affine<T> f = affine(s, slab.n, slab.first + c, get_stats<T>(s, group0 + c / per_group));
            mean[c] = f.mean, alpha[c] = f.a, b[c] = f.b;
        }
        first_slab(s, slab, scratch.data(), p, q);
        for (int64_t c0 = 0; c0 < width; c0 += per_group) {
            const Stats<T> stats = get_stats<T>(s, group0 + c0 / per_group);
            const double rstd = stats.rstd, size = double(per_group * s.space);
            double sum_p = 0, sum_q = 0;
            for (int64_t c = c0; c < c0 + per_group; ++c) {
                const double scaled = weight[slab.first + c] * scale_of<T>(s, slab.n, slab.first + c);
                q[c] = (q[c] - stats.lost * p[c]) * rstd;
                sum_p += scaled * p[c];
                sum_q += scaled * q[c];
                P[row + c] = p[c];
                P[s.n * s.c + row + c] = q[c];
            }
            const double shared = sum_q * rstd * rstd / size;
            std::fill(beta + c0, beta + c0 + per_group, T(sum_p * rstd / size - stats.lost * shared));
            std::fill(gamma + c0, gamma + c0 + per_group, T(shared));
        }
        for (int64_t i = 0; i < s.space; ++i) {
            const int64_t at = slab.offset + i * s.c;
            const T* x = static_cast<const T*>(s.x_ptr) + at;
            second_pass_last(static_cast<T*>(s.dx_ptr) + at, x, mean, alpha, beta, gamma, width);
        }
    }
}

// gradients of weight, bias, scale and shift from P and Q
template <typename T>
static void channel_gradients(const GroupNormSilu& s, const double* P) {
    const double* Q = P + s.n * s.c;
    T *dweight = static_cast<T*>(s.dparams_ptr), *dbias = dweight + s.c, *dscale = dbias + s.c;
    T* dshift = dscale + s.scale_rows * s.c;
    for (int64_t c = 0; c < s.c; ++c) {
        const double weight = static_cast<const T*>(s.weight_ptr)[c], bias = static_cast<const T*>(s.bias_ptr)[c];
        double dw = 0, db = 0, dsc = 0, dsh = 0;
        for (int64_t n = 0; n < s.n; ++n) {
            const double scale = scale_of<T>(s, n, c), p = P[n * s.c + c], q = Q[n * s.c + c];
            dw += scale * q;
            db += scale * p;
            dsc += weight * q + bias * p;
            dsh += p;
            if (s.scale_rows > 1) dscale[n * s.c + c] = T(weight * q + bias * p);
            if (s.shift_rows > 1) dshift[n * s.c + c] = T(p);
        }
        dweight[c] = T(dw);
        dbias[c] = T(db);
        if (s.scale_rows == 1) dscale[c] = T(dsc);
        if (s.shift_rows == 1) dshift[c] = T(dsh);
    }
}

template <typename T>
static int differentiate_groups(const GroupNormSilu& s, int threads) {
    std::vector<double> sums(2 * s.n * s.c);
    double* P = sums.data();
    const auto body = s.channels_last ? backward_last<T> : backward<T>;
    for_items(s, threads, [&](int64_t most, int64_t begin, int64_t end) { body(s, P, most, begin, end); });
    channel_gradients<T>(s, P);
    return kOk;
}

static int group_norm_silu_bwd(const GroupNormSilu& s, int threads) {
    if (!sizes_fit(s)) return kBadArgument;
    if (s.dtype == kFloat32) return differentiate_groups<float>(s, threads);
    return s.dtype == kFloat64 ? differentiate_groups<double>(s, threads) : kBadType;
}
EDM_END
