// Factor 2 with 2 or 4 taps: rows padded in a small buffer; channels as vectors when they are last. Anything else takes
// the general loop. Sums run over filter rows, then columns, uncontracted: one result on every instruction set and
// thread count.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../upfirdn.h"
#include "../simd/isas.h"

EDM_BEGIN
template <typename T>
struct FilterTask {
    const Upfirdn& s;
    const T* f;  // (taps, taps), gain included
};

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

template <typename T>
EDM_INLINE void split(T* EDM_RESTRICT first, T* EDM_RESTRICT second, const T* EDM_RESTRICT row, int64_t n) {
    for (int64_t k = 0; k < n; ++k) {
        first[k] = row[2 * k];
        second[k] = row[2 * k + 1];
    }
}

// a filter may run on past the last row, so that whole vectors remain
constexpr int64_t kSlack = 18;

// The rows and columns of a padded block by parity: four planes of one pitch, in which every filter tap reads
// consecutive elements. Columns of padding are never written, and stay zero.
template <typename T>
struct Parity {
    int64_t pitch, size;
    std::vector<T> planes;
    Parity(int64_t rows, int64_t pitch) : pitch(pitch), size(rows * pitch + kSlack), planes(4 * size, T(0)) {}
    T* at(int64_t row, int64_t col) { return planes.data() + ((row & 1) * 2 + (col & 1)) * size + (row >> 1) * pitch; }
};

template <typename T>
EDM_INLINE void fill_row(Parity<T>& to, int64_t row, const T* x, int64_t w, int64_t padding) {
    if (!x) {
        std::fill(to.at(row, 0), to.at(row, 0) + to.pitch, T(0));
        std::fill(to.at(row, 1), to.at(row, 1) + to.pitch, T(0));
        return;
    }
    const int64_t skip = padding >> 1, skip2 = (padding + 1) >> 1;
    const int64_t n = std::min((w + 1) / 2, to.pitch - skip), n2 = std::min(w / 2, to.pitch - skip2);
    split(to.at(row, padding) + skip, to.at(row, padding + 1) + skip2, x, std::max<int64_t>(n2, 0));
    if (n > n2 && n > 0) to.at(row, padding)[skip + n - 1] = x[2 * (n - 1)];
}

template <typename T, int K>
EDM_INLINE void filter(T* EDM_RESTRICT y, const T* const* planes, int64_t pitch, const T* f, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        T sum = planes[0][j] * f[0];
#pragma GCC unroll 16
        for (int k = 1; k < K * K; ++k) {
            const int ky = k / K, kx = k % K;
            sum += planes[(ky & 1) * 2 + (kx & 1)][j + (ky >> 1) * pitch + (kx >> 1)] * f[k];
        }
        y[j] = sum;
    }
}

template <typename T, int K>
static void down_planes(const FilterTask<T>& task, int64_t begin, int64_t end) {
    const Upfirdn& s = task.s;
    const int64_t pitch = s.out_w + K / 2 - 1;
    const int64_t most = std::min(s.out_h, std::max<int64_t>(1, 1024 / pitch));  // output rows at a time
    Parity<T> padded(most + K / 2 - 1, pitch);
    const T* planes[4] = {padded.at(0, 0), padded.at(0, 1), padded.at(1, 0), padded.at(1, 1)};
    std::vector<T> sums(most * pitch + kSlack);  // rows of `pitch`, of which the last K/2 - 1 columns mean nothing
    T f[K * K];
    std::copy(task.f, task.f + K * K, f);
    for (int64_t plane = begin; plane < end; ++plane) {
        const T* x = static_cast<const T*>(s.x_ptr) + plane * s.h * s.w;
        T* y = static_cast<T*>(s.y_ptr) + plane * s.out_h * s.out_w;
        for (int64_t i = 0; i < s.out_h; i += most) {
            const int64_t rows = std::min(most, s.out_h - i);
            for (int64_t row = 0; row < 2 * rows + K - 2; ++row) {
                const int64_t r = 2 * i - s.padding + row;
                fill_row(padded, row, r >= 0 && r < s.h ? x + r * s.w : nullptr, s.w, s.padding);
            }
            T* to = K == 2 ? y + i * s.out_w : sums.data();
            const int64_t n = (rows - 1) * pitch + s.out_w;
            filter<T, K>(to, planes, pitch, f, K == 2 ? n : (n + 15) / 16 * 16);
            for (int64_t row = 0; K > 2 && row < rows; ++row)
                std::copy(to + row * pitch, to + row * pitch + s.out_w, y + (i + row) * s.out_w);
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
static void up_planes(const FilterTask<T>& task, int64_t begin, int64_t end) {
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
static void last_rows(const FilterTask<T>& task, int64_t begin, int64_t end) {
    constexpr int M = Up ? K / 2 : K;
    const Upfirdn& s = task.s;
    const std::vector<T> zeros(s.c);
    for (int64_t line = begin; line < end; ++line) {  // (n, out_h)
        const int64_t i = line % s.out_h;
        const T* image = static_cast<const T*>(s.x_ptr) + line / s.out_h * s.h * s.w * s.x_pitch;
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
                    x[a * M + b] = inside ? image + (r * s.w + col) * s.x_pitch : zeros.data();
                    f[a * M + b] = task.f[ky * K + kx];
                }
            mix<T, M>(y, x, f, s.c);
        }
    }
}

static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// any filter, factor and layout: the formula itself; begin, end count rows (n, c, out_h)
template <typename T>
static void general(const FilterTask<T>& task, int64_t begin, int64_t end) {
    const Upfirdn& s = task.s;
    const int64_t sc = s.channels_last ? 1 : s.h * s.w, sw = s.channels_last ? s.x_pitch : 1;
    const int64_t oc = s.channels_last ? 1 : s.out_h * s.out_w, ow = s.channels_last ? s.c : 1;
    for (int64_t line = begin; line < end; ++line) {
        const int64_t i = line % s.out_h, c = line / s.out_h % s.c, n = line / s.out_h / s.c;
        const T* x = static_cast<const T*>(s.x_ptr) + n * s.h * s.w * (s.channels_last ? s.x_pitch : s.c) + c * sc;
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

// for work items [begin, end): planes of an image, or, channels last, rows (n, out_h) of pixels
template <typename T>
using Filter = void (*)(const FilterTask<T>& task, int64_t begin, int64_t end);

// the first index tells whether they are for up-sampling, the second whether there are four taps or two
template <typename T>
constexpr Filter<T> filter_planes[2][2] = {{down_planes<T, 2>, down_planes<T, 4>}, {up_planes<T, 2>, up_planes<T, 4>}};
template <typename T>
constexpr Filter<T> filter_rows[2][2] = {{last_rows<T, 2, false>, last_rows<T, 4, false>},
                                         {last_rows<T, 2, true>, last_rows<T, 4, true>}};

template <typename T>
static int resample(const Upfirdn& s, int threads) {
    std::vector<T> f(s.taps * s.taps);
    for (int64_t k = 0; k < s.taps * s.taps; ++k) f[k] = static_cast<const T*>(s.f_ptr)[k] * T(s.gain);
    const FilterTask<T> task{s, f.data()};
    const bool special = s.factor == 2 && (s.taps == 2 || s.taps == 4);
    const auto& filters = s.channels_last ? filter_rows<T> : filter_planes<T>;
    const auto body = special ? filters[s.up][s.taps == 4] : general<T>;
    // work items: image planes, rows of all channels, or rows of one channel
    const int64_t items = !special ? s.n * s.c * s.out_h : s.channels_last ? s.n * s.out_h : s.n * s.c;
    const int64_t total = s.n * s.c * s.out_h * s.out_w;
    const int64_t grain = total ? std::max<int64_t>(1, 8192 * items / total) : 1;
    parallel_for(items, grain, threads, [&](int64_t begin, int64_t end) { body(task, begin, end); });
    return kOk;
}

static int upfirdn_fwd(const Upfirdn& s, int threads) {
    if (s.taps < 1 || s.factor < 1 || s.padding < 0) return kBadArgument;
    if (s.n < 0 || s.c < 0 || s.h < 1 || s.w < 1 || s.out_h < 1 || s.out_w < 1) return kBadArgument;
    if (s.channels_last && s.x_pitch < s.c) return kBadArgument;
    if (s.dtype == kFloat32) return resample<float>(s, threads);
    if (s.dtype == kFloat64) return resample<double>(s, threads);
    return kBadType;
}
EDM_END
