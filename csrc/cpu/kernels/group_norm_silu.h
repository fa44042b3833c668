// The norm. Statistics: each block is shifted by the mean of the one before it (the first by that of its beginning),
// which bounds the cancellation by the variance itself; blocks are joined in float64 (Chan, Golub & LeVeque 1979).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../../group_norm_silu.h"
#include "../_group_norm_silu.h"
#include "../simd/isas.h"
#include "exp.h"
#include "group_norm_silu_sums.h"
#include "normalise.h"

EDM_BEGIN
// count, mean and sum of squared deviations, in double whatever T is
struct Moments {
    double n = 0, mean = 0, m2 = 0;
    EDM_INLINE void join(double count, double other_mean, double other_m2) {
        const double total = n + count, delta = other_mean - mean;
        mean += delta * (count / total);
        m2 += other_m2 + delta * delta * (n * count / total);
        n = total;
    }
    template <typename T>
    EDM_INLINE Stats<T> stats(double eps) const {
        return {T(mean), mean - double(T(mean)), 1 / std::sqrt(m2 / n + eps)};
    }
};

template <typename T>
EDM_INLINE Moments moments(const T* x, int64_t size) {
    Moments m;
    double sum = 0, squares = 0;
    const int64_t few = std::min(kFirst, size);
    shifted_sums<T, true>(nullptr, x, few, x[0], sum, squares);
    T shift = x[0] + T(sum / few);
    for (int64_t i = 0; i < size; i += kSumBlock) {
        const int64_t n = std::min(kSumBlock, size - i);
        sum = squares = 0;
        shifted_sums<T, true>(nullptr, x + i, n, shift, sum, squares);
        m.join(n, shift + sum / n, std::max(0.0, squares - sum * sum / n));
        shift = T(shift + sum / n);
    }
    return m;
}

template <typename T>
EDM_INLINE void silu_in_place(T* y, int64_t size) {
    T e[kStage];
    for (int64_t i0 = 0; i0 < size; i0 += kStage, y += kStage) {
        const int64_t n = std::min(kStage, size - i0);
        exp_minus_abs(e, y, n);
        for (int64_t i = 0; i < n; ++i) y[i] = (y[i] < T(0) ? y[i] * e[i] : y[i]) / (T(1) + e[i]);
    }
}

template <typename T>
static void forward(const GroupNormSilu& s, int64_t begin, int64_t end) {
    const int64_t per_group = s.c / s.groups;
    for (int64_t item = begin; item < end; ++item) {  // (n, groups)
        const int64_t n = item / s.groups, first = item % s.groups * per_group;
        const int64_t offset = (n * s.c + first) * s.space;
        const T* x = static_cast<const T*>(s.x_ptr) + offset;
        T* y = static_cast<T*>(s.y_ptr) + offset;
        const Stats<T> stats = moments(x, per_group * s.space).template stats<T>(s.eps);
        put_stats(s, item, stats);
        int64_t waiting = 0;  // elements before y that want the SiLU
        for (int64_t c = 0; c < per_group; ++c, x += s.space, y += s.space) {
            apply(y, x, affine(s, n, first + c, stats), s.space);
            waiting += s.space;
            if (s.silu && (waiting >= kSumBlock / 2 || c + 1 == per_group)) {
                silu_in_place(y + s.space - waiting, waiting);
                waiting = 0;
            }
        }
    }
}

// u, v: sums of x - shift and its square, per channel; pixels four at a time to save half of the traffic
template <typename T>
EDM_INLINE void shifted_sums_last(T* EDM_RESTRICT u, T* EDM_RESTRICT v, const T* x, const T* shift, int64_t pixels,
                                  int64_t pitch, int64_t width) {
    std::fill(u, u + width, T(0));
    std::fill(v, v + width, T(0));
    int64_t p = 0;
    for (; p + 4 <= pixels; p += 4, x += 4 * pitch)
        for (int64_t c = 0; c < width; ++c) {
            const T d0 = x[c] - shift[c], d1 = x[pitch + c] - shift[c];
            const T d2 = x[2 * pitch + c] - shift[c], d3 = x[3 * pitch + c] - shift[c];
            u[c] += (d0 + d1) + (d2 + d3);
            v[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
        }
    for (; p < pixels; ++p, x += pitch)
        for (int64_t c = 0; c < width; ++c) {
            const T d = x[c] - shift[c];
            u[c] += d;
            v[c] += d * d;
        }
}

// mean and sum of squared deviations of each channel
template <typename T>
EDM_INLINE void moments_last(double* EDM_RESTRICT mean, double* EDM_RESTRICT m2, T* scratch, const T* x, int64_t space,
                             int64_t pitch, int64_t width) {
    T *u = scratch, *v = scratch + width, *shift = scratch + 2 * width;
    std::copy(x, x + width, shift);
    std::fill(mean, mean + width, 0.0);
    std::fill(m2, m2 + width, 0.0);
    for (int64_t p = 0; p < space; p += kPixels) {
        const int64_t pixels = std::min(kPixels, space - p);
        const double inverse = 1.0 / double(pixels), share = double(pixels) / double(p + pixels);
        if (p == 0) {
            shifted_sums_last(u, v, x, shift, pixels, pitch, width);
            for (int64_t c = 0; c < width; ++c) shift[c] += T(u[c] * inverse);
        }
        shifted_sums_last(u, v, x + p * pitch, shift, pixels, pitch, width);
        for (int64_t c = 0; c < width; ++c) {
            const double sum = u[c], here = shift[c] + sum * inverse, delta = here - mean[c];
            const double squares = v[c] - sum * sum * inverse;
            mean[c] += delta * share;
            m2[c] += (squares > 0 ? squares : 0) + delta * delta * (double(p) * share);
            shift[c] = T(here);
        }
    }
}

// y = m or SiLU(m) for the channels of one pixel; float32, where almost all time is spent, in explicit vectors and with
// fused multiply-adds
template <typename T>
EDM_INLINE void pixel(T* y, const T* x, const T* mean, const T* a, const T* b, int64_t channels, bool silu) {
    if constexpr (std::is_same_v<T, float>) {
        normalise_pixel(y, x, mean, a, b, channels, silu);
    } else {
        apply_last(y, x, mean, a, b, channels);
        if (silu) silu_in_place(y, channels);
    }
}

template <typename T>
static void forward_last(const GroupNormSilu& s, int64_t most, int64_t begin, int64_t end) {
    const int64_t per_group = s.c / s.groups;
    std::vector<double> doubles(2 * most);
    std::vector<T> scratch(6 * most);
    double *means = doubles.data(), *m2 = means + most;
    T *mean = scratch.data() + 3 * most, *a = mean + most, *b = a + most;
    for (int64_t item = begin; item < end; ++item) {
        const Slab<T> slab(s, most, item);
        const T* x = static_cast<const T*>(s.x_ptr) + slab.n * s.space * s.x_pitch + slab.first;
        T* y = s.y_ptr ? static_cast<T*>(s.y_ptr) + slab.offset : nullptr;
        moments_last(means, m2, scratch.data(), x, s.space, s.x_pitch, slab.width);
        for (int64_t c0 = 0; c0 < slab.width; c0 += per_group) {
            Moments m;
            for (int64_t c = c0; c < c0 + per_group; ++c) m.join(double(s.space), means[c], m2[c]);
            const Stats<T> stats = m.template stats<T>(s.eps);
            const int64_t group = slab.n * s.groups + (slab.first + c0) / per_group;
            put_stats(s, group, stats);
            for (int64_t c = c0; c < c0 + per_group; ++c) {
                const Affine<T> f = affine(s, slab.n, slab.first + c, stats);
                mean[c] = f.mean, a[c] = f.a, b[c] = f.b;
            }
        }
        if (s.affine_ptr) {
            T* to = static_cast<T*>(s.affine_ptr) + slab.n * 3 * s.c + slab.first;
            for (const T* from : {mean, a, b}) to = std::copy(from, from + slab.width, to) + s.c - slab.width;
        }
        for (int64_t p = 0; y && p < s.space; ++p, x += s.x_pitch, y += s.c)
            pixel(y, x, mean, a, b, slab.width, s.silu);
    }
}

template <typename T>
static int normalise_groups(const GroupNormSilu& s, int threads) {
    for_items(s, threads, [&](int64_t most, int64_t begin, int64_t end) {
        if (s.channels_last) forward_last<T>(s, most, begin, end);
        else forward<T>(s, begin, end);
    });
    return kOk;
}

static int group_norm_silu_fwd(const GroupNormSilu& s, int threads) {
    if (!sizes_fit(s) || (s.channels_last && s.x_pitch < s.c)) return kBadArgument;
    if (s.affine_ptr ? !s.channels_last : !s.y_ptr) return kBadArgument;
    if (s.dtype == kFloat32) return normalise_groups<float>(s, threads);
    return s.dtype == kFloat64 ? normalise_groups<double>(s, threads) : kBadType;
}
EDM_END
