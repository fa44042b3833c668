// What the forward and the backward of group_norm_silu share.
//
// Work items are an image's group (contiguous), or a slab of whole groups of an image (channels last). Sums run in fixed
// lanes and blocks, uncontracted: one result on every instruction set and thread count. Only y in float32, channels last,
// has fused multiply-adds where the instruction set has them (_group_norm_silu.inc).
#pragma once

#include <algorithm>
#include <vector>

#include "../group_norm_silu.h"
#include "_exp.h"

namespace edm {
namespace {

template <typename T>
constexpr int kLanes = 128 / sizeof(T);
constexpr int64_t kBlock = 2048;    // elements whose sums stay in T, when contiguous
constexpr int64_t kFirst = 128;     // elements whose mean is the first shift
constexpr int64_t kPixels = 64;     // the same for channels last

// m = (x - mean) a + b of one channel of one image
template <typename T>
struct Affine {
    T mean, a, b;
};

template <typename T>
EDM_INLINE double scale_of(const GroupNormSilu& s, int64_t n, int64_t c) {
    return s.scale_ptr ? 1 + double(static_cast<const T*>(s.scale_ptr)[(s.scale_rows > 1 ? n * s.c : 0) + c]) : 1;
}

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
    constexpr int half = kLanes<T> / 2, quarter = half / 2;
    for (int l = 0; l < quarter; ++l)
        lanes[l] = (lanes[l] + lanes[l + half]) + (lanes[l + quarter] + lanes[l + half + quarter]);
    double sum = 0;
    for (int l = 0; l < quarter; ++l) sum += double(lanes[l]);
    return sum;
}

// Adds to `sum` and `product` the sums of f and f (x - shift) over at most kBlock elements; f is x - shift itself
// with Squares, g without.
template <typename T, bool Squares>
EDM_INLINE void shifted_sums(const T* g, const T* x, int64_t n, T shift, double& sum, double& product) {
    constexpr int L = kLanes<T>;
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

// Channels last: a work item is a slab of whole groups of one image, all of them if there are images enough for the
// threads. No sum crosses a group, so that results do not depend on the width.
int64_t slab_channels(const GroupNormSilu& s, int threads) {
    const int64_t per_group = s.c / s.groups, slabs = std::max<int64_t>(1, (threads + s.n - 1) / s.n);
    int64_t width = per_group;
    while (width < s.c && (width * slabs < s.c || width % 16)) width += per_group;
    return std::min(width, s.c);
}

template <typename T>
struct Slab {
    int64_t n, first, width;  // image; channels first .. first + width
    int64_t offset;           // of its first element
    Slab(const GroupNormSilu& s, int64_t most, int64_t item) {
        const int64_t slabs = (s.c + most - 1) / most;
        n = item / slabs;
        first = item % slabs * most;
        width = std::min(most, s.c - first);
        offset = n * s.space * s.c + first;
    }
};

// body(most channels of an item, begin, end) over all items
template <typename F>
void for_items(const GroupNormSilu& s, int threads, F&& body) {
    const int64_t width = s.channels_last ? slab_channels(s, threads) : s.c / s.groups;
    const int64_t items = s.n * ((s.c + width - 1) / width);
    const int64_t grain = std::max<int64_t>(1, 8192 / (width * s.space));
    parallel_for(items, grain, threads, [&](int64_t begin, int64_t end) { body(width, begin, end); });
}

inline bool rows_fit(const void* p, int64_t rows, int64_t n) { return p ? rows == 1 || rows == n : rows == 0; }

inline bool sizes_fit(const GroupNormSilu& s, int isa) {
    return s.n > 0 && s.c > 0 && s.space > 0 && s.groups > 0 && s.c % s.groups == 0 && isa <= best_isa() &&
           rows_fit(s.scale_ptr, s.scale_rows, s.n) && rows_fit(s.shift_ptr, s.shift_rows, s.n);
}

}  // namespace
}  // namespace edm
