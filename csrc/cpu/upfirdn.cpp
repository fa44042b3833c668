// Factor 2 with 2 or 4 taps has its own loops (rows padded in a small buffer; channels as vectors when they are last);
// anything else takes the general loop. Sums run over filter rows, then columns, uncontracted: one result on every
// instruction set and thread count.
#include "../upfirdn.h"

#include <algorithm>
#include <vector>

namespace edm {
namespace {

template <typename T>
struct Task {
    const Upfirdn& s;
    const T* f;  // (taps, taps), gain included
};

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// One image row into a buffer that starts at column `first` (often negative), zeros outside the image.
template <typename T>
EDM_INLINE void padded_row(T* EDM_RESTRICT to, const T* row, int64_t w, int64_t first, int64_t n) {
    const int64_t lo = std::max<int64_t>(0, std::min(n, -first)), hi = std::max(lo, std::min(n, w - first));
    std::fill(to, to + lo, T(0));
    if (row)
        std::copy(row + first + lo, row + first + hi, to + lo);
    else
        std::fill(to + lo, to + hi, T(0));
    std::fill(to + hi, to + n, T(0));
}

// even and odd columns apart, so that a filter tap reads consecutive elements
template <typename T>
EDM_INLINE void split(T* EDM_RESTRICT even, T* EDM_RESTRICT odd, const T* EDM_RESTRICT row, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        even[j] = row[2 * j];
        odd[j] = row[2 * j + 1];
    }
}

template <typename T, int K>
EDM_INLINE void down_row(T* EDM_RESTRICT y, const T* const* even, const T* const* odd, const T* f, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        T sum = T(0);
#pragma GCC unroll 4
        for (int ky = 0; ky < K; ++ky)
#pragma GCC unroll 2
            for (int m = 0; m < K / 2; ++m) {
                sum += even[ky][j + m] * f[ky * K + 2 * m];
                sum += odd[ky][j + m] * f[ky * K + 2 * m + 1];
            }
        y[j] = sum;
    }
}

template <typename T, int K>
EDM_INLINE void down_planes(const Task<T>& task, int64_t begin, int64_t end) {
    const Upfirdn& s = task.s;
    const int64_t pairs = s.out_w + K / 2 - 1, wide = 2 * pairs;
    std::vector<T> scratch((K + 1) * wide);
    T* row = scratch.data() + K * wide;
    T f[K * K];
    std::copy(task.f, task.f + K * K, f);
    for (int64_t plane = begin; plane < end; ++plane) {
        const T* x = static_cast<const T*>(s.x_ptr) + plane * s.h * s.w;
        T* y = static_cast<T*>(s.y_ptr) + plane * s.out_h * s.out_w;
        int64_t ready = -s.padding;  // input rows below this one are in the ring
        for (int64_t i = 0; i < s.out_h; ++i, y += s.out_w) {
            const T *even[K], *odd[K];
            for (int ky = 0; ky < K; ++ky) {
                const int64_t r = 2 * i - s.padding + ky;
                T* slot = scratch.data() + ((r + s.padding) % K) * wide;
                if (r >= ready) {
                    const T* source = r >= 0 && r < s.h ? x + r * s.w : nullptr;
                    if (source && s.padding == 0 && wide <= s.w) {
                        split(slot, slot + pairs, source, pairs);
                    } else {
                        padded_row(row, source, s.w, -s.padding, wide);
                        split(slot, slot + pairs, row, pairs);
                    }
                    ready = r + 1;
                }
                even[ky] = slot;
                odd[ky] = slot + pairs;
            }
            down_row<T, K>(y, even, odd, f, s.out_w);
        }
    }
}

// The two phases of a row: column 2j reads taps e0, e0 + 2, ..; column 2j + 1 reads taps 1 - e0, ..
template <typename T, int K>
EDM_INLINE void up_row(T* EDM_RESTRICT y, const T* const* rows, const T* f, int64_t padding, int ey, int64_t n) {
    const int e0 = padding & 1, e1 = 1 - e0;
    const int64_t b0 = padding >> 1, b1 = (padding + 1) >> 1;
    T f0[K / 2][K / 2], f1[K / 2][K / 2];
    for (int my = 0; my < K / 2; ++my)
        for (int m = 0; m < K / 2; ++m) {
            f0[my][m] = f[(ey + 2 * my) * K + e0 + 2 * m];
            f1[my][m] = f[(ey + 2 * my) * K + e1 + 2 * m];
        }
    for (int64_t j = 0; j < n / 2; ++j) {
        T s0 = T(0), s1 = T(0);
#pragma GCC unroll 2
        for (int my = 0; my < K / 2; ++my)
#pragma GCC unroll 2
            for (int m = 0; m < K / 2; ++m) {
                s0 += rows[my][j + b0 - m] * f0[my][m];
                s1 += rows[my][j + b1 - m] * f1[my][m];
            }
        y[2 * j] = s0;
        y[2 * j + 1] = s1;
    }
    if (n % 2) {
        T s0 = T(0);
        for (int my = 0; my < K / 2; ++my)
            for (int m = 0; m < K / 2; ++m) s0 += rows[my][n / 2 + b0 - m] * f0[my][m];
        y[n - 1] = s0;
    }
}

template <typename T, int K>
EDM_INLINE void up_planes(const Task<T>& task, int64_t begin, int64_t end) {
    const Upfirdn& s = task.s;
    const int64_t first = 1 - K / 2, wide = (s.out_w + s.padding) / 2 + K;  // columns first .. first + wide
    std::vector<T> scratch(K / 2 * wide);
    T f[K * K];
    std::copy(task.f, task.f + K * K, f);
    for (int64_t plane = begin; plane < end; ++plane) {
        const T* x = static_cast<const T*>(s.x_ptr) + plane * s.h * s.w;
        T* y = static_cast<T*>(s.y_ptr) + plane * s.out_h * s.out_w;
        int64_t ready = (s.padding >> 1) + first;  // input rows below this one are in the ring
        for (int64_t i = 0; i < s.out_h; ++i, y += s.out_w) {
            const int64_t q = i + s.padding;
            const T* rows[K / 2];
            for (int m = K / 2 - 1; m >= 0; --m) {
                const int64_t r = (q >> 1) - m;
                T* slot = scratch.data() + ((r + K) % (K / 2)) * wide;
                if (r >= ready) {
                    padded_row(slot, r >= 0 && r < s.h ? x + r * s.w : nullptr, s.w, first, wide);
                    ready = r + 1;
                }
                rows[m] = slot - first;
            }
            up_row<T, K>(y, rows, f, s.padding, static_cast<int>(q & 1), s.out_w);
        }
    }
}

// Channels last: each output pixel is a weighted sum of M x M input pixels, all channels at once.
template <typename T, int M>
EDM_INLINE void mix(T* EDM_RESTRICT y, const T* const* x, const T* f, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        T sum = T(0);
#pragma GCC unroll 16
        for (int k = 0; k < M * M; ++k) sum += x[k][c] * f[k];
        y[c] = sum;
    }
}

template <typename T, int K, bool Up>
EDM_INLINE void last_rows(const Task<T>& task, int64_t begin, int64_t end) {
    constexpr int M = Up ? K / 2 : K;
    const Upfirdn& s = task.s;
    const std::vector<T> zeros(s.c);
    for (int64_t line = begin; line < end; ++line) {  // (n, out_h)
        const int64_t i = line % s.out_h;
        const T* image = static_cast<const T*>(s.x_ptr) + line / s.out_h * s.h * s.w * s.c;
        T* y = static_cast<T*>(s.y_ptr) + line * s.out_w * s.c;
        for (int64_t j = 0; j < s.out_w; ++j, y += s.c) {
            const T* x[M * M];
            T f[M * M];
            for (int a = 0; a < M; ++a)
                for (int b = 0; b < M; ++b) {
                    const int64_t qy = i + s.padding, qx = j + s.padding;
                    const int64_t r = Up ? (qy >> 1) - a : 2 * i - s.padding + a;
                    const int64_t col = Up ? (qx >> 1) - b : 2 * j - s.padding + b;
                    const int64_t ky = Up ? (qy & 1) + 2 * a : a, kx = Up ? (qx & 1) + 2 * b : b;
                    const bool inside = r >= 0 && r < s.h && col >= 0 && col < s.w;
                    x[a * M + b] = inside ? image + (r * s.w + col) * s.c : zeros.data();
                    f[a * M + b] = task.f[ky * K + kx];
                }
            mix<T, M>(y, x, f, s.c);
        }
    }
}

// any filter, factor and layout: the formula itself; begin, end count rows (n, c, out_h)
template <typename T>
void general(const Task<T>& task, int64_t begin, int64_t end) {
    const Upfirdn& s = task.s;
    const int64_t sc = s.channels_last ? 1 : s.h * s.w, sw = s.channels_last ? s.c : 1;
    const int64_t oc = s.channels_last ? 1 : s.out_h * s.out_w, ow = s.channels_last ? s.c : 1;
    for (int64_t line = begin; line < end; ++line) {
        const int64_t i = line % s.out_h, c = line / s.out_h % s.c, n = line / s.out_h / s.c;
        const T* x = static_cast<const T*>(s.x_ptr) + n * s.c * s.h * s.w + c * sc;
        T* y = static_cast<T*>(s.y_ptr) + n * s.c * s.out_h * s.out_w + c * oc + i * s.out_w * ow;
        const int64_t first = s.up ? floor_div(i + s.padding, s.factor) : s.factor * i - s.padding;
        for (int64_t j = 0; j < s.out_w; ++j) {
            const int64_t left = s.up ? floor_div(j + s.padding, s.factor) : s.factor * j - s.padding;
            T sum = T(0);
            for (int64_t a = 0;; ++a) {
                const int64_t r = s.up ? first - a : first + a, ky = s.up ? i + s.padding - s.factor * r : a;
                if (ky >= s.taps) break;
                if (r < 0 || r >= s.h) continue;
                for (int64_t b = 0;; ++b) {
                    const int64_t col = s.up ? left - b : left + b, kx = s.up ? j + s.padding - s.factor * col : b;
                    if (kx >= s.taps) break;
                    if (col >= 0 && col < s.w) sum += x[(r * s.w + col) * sw] * task.f[ky * s.taps + kx];
                }
            }
            y[j * ow] = sum;
        }
    }
}

template <typename T>
EDM_INLINE void down2(const Task<T>& t, int64_t i, int64_t j) { down_planes<T, 2>(t, i, j); }
template <typename T>
EDM_INLINE void down4(const Task<T>& t, int64_t i, int64_t j) { down_planes<T, 4>(t, i, j); }
template <typename T>
EDM_INLINE void up2(const Task<T>& t, int64_t i, int64_t j) { up_planes<T, 2>(t, i, j); }
template <typename T>
EDM_INLINE void up4(const Task<T>& t, int64_t i, int64_t j) { up_planes<T, 4>(t, i, j); }
template <typename T>
EDM_INLINE void down2_last(const Task<T>& t, int64_t i, int64_t j) { last_rows<T, 2, false>(t, i, j); }
template <typename T>
EDM_INLINE void down4_last(const Task<T>& t, int64_t i, int64_t j) { last_rows<T, 4, false>(t, i, j); }
template <typename T>
EDM_INLINE void up2_last(const Task<T>& t, int64_t i, int64_t j) { last_rows<T, 2, true>(t, i, j); }
template <typename T>
EDM_INLINE void up4_last(const Task<T>& t, int64_t i, int64_t j) { last_rows<T, 4, true>(t, i, j); }

#define EDM_TASK_VARIANTS(NAME) EDM_VARIANTS(NAME, (const Task<T>& t, int64_t i, int64_t j), (t, i, j))
EDM_TASK_VARIANTS(down2)
EDM_TASK_VARIANTS(down4)
EDM_TASK_VARIANTS(up2)
EDM_TASK_VARIANTS(up4)
EDM_TASK_VARIANTS(down2_last)
EDM_TASK_VARIANTS(down4_last)
EDM_TASK_VARIANTS(up2_last)
EDM_TASK_VARIANTS(up4_last)

template <typename T>
auto pick(const Upfirdn& s, int isa) {
    if (s.taps == 2) {
        if (s.channels_last) return s.up ? up2_last_for<T>(isa) : down2_last_for<T>(isa);
        return s.up ? up2_for<T>(isa) : down2_for<T>(isa);
    }
    if (s.channels_last) return s.up ? up4_last_for<T>(isa) : down4_last_for<T>(isa);
    return s.up ? up4_for<T>(isa) : down4_for<T>(isa);
}

template <typename T>
int run(const Upfirdn& s, int isa, int threads) {
    std::vector<T> f(s.taps * s.taps);
    for (int64_t k = 0; k < s.taps * s.taps; ++k) f[k] = static_cast<const T*>(s.f_ptr)[k] * T(s.gain);
    const Task<T> task{s, f.data()};
    const bool special = s.factor == 2 && (s.taps == 2 || s.taps == 4);
    const auto body = special ? pick<T>(s, isa) : general<T>;
    // work items: image planes, rows of all channels, or rows of one channel
    const int64_t items = !special ? s.n * s.c * s.out_h : s.channels_last ? s.n * s.out_h : s.n * s.c;
    const int64_t total = s.n * s.c * s.out_h * s.out_w;
    const int64_t grain = total ? std::max<int64_t>(1, 8192 * items / total) : 1;
    parallel_for(items, grain, threads, [&](int64_t begin, int64_t end) { body(task, begin, end); });
    return kOk;
}

}  // namespace

int upfirdn_fwd_cpu(const Upfirdn& s, int isa, int threads) {
    if (s.taps < 1 || s.factor < 1 || s.padding < 0 || isa > best_isa()) return kBadArgument;
    if (s.n < 0 || s.c < 0 || s.h < 1 || s.w < 1 || s.out_h < 1 || s.out_w < 1) return kBadArgument;
    if (s.dtype == kFloat32) return run<float>(s, isa, threads);
    if (s.dtype == kFloat64) return run<double>(s, isa, threads);
    return kBadType;
}

}  // namespace edm
