// How the sums of a convolution become its outputs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../conv2d.h"
#include "../_conv2d.h"
#include "../_layout.h"
#include "../simd/vector.h"

EDM_BEGIN
// What is done to sums before they are stored. Copied out of the arguments, which the compiler would read again after
// every store.
struct Tail {
    float* y;
    const float* residual;
    int64_t y_pitch, residual_pitch;
    V scale, lowest;
    bool clips;
    explicit Tail(const Conv2d& s)
        : y(static_cast<float*>(s.y_ptr)), residual(static_cast<const float*>(s.residual_ptr)), y_pitch(s.y_pitch),
          residual_pitch(s.residual_pitch), scale(set1(float(s.scale))), lowest(set1(float(-s.clip))),
          clips(s.clip > 0) {}
    // asks for where the outputs of a panel of one pixel will be written, and the residual, as they come from far
    EDM_INLINE void expect(int64_t pixel, int64_t channel) const {
        for (int64_t c = channel; c < channel + kPanel; c += 16) {
            prefetch_to_write(y + pixel * y_pitch + c);
            if (residual) prefetch(residual + pixel * residual_pitch + c);
        }
    }
    // factors, bias, residual and scale on one vector of outputs: `left` channels from `channel` on of one pixel of y
    EDM_INLINE void finish(V v, V bias, int64_t pixel, int64_t channel, int64_t left,
                                                      V factor = set1(1)) const {
        v = fma(v, factor, bias);
        if (residual) v = v + load_upto(residual + pixel * residual_pitch + channel, left);
        v = v * scale;
        if (clips) v = V{} - max_of(lowest, V{} - max_of(lowest, v));
        store_upto(y + pixel * y_pitch + channel, v, left);
    }
};

static inline V bias_at(const Conv2d& s, int64_t n, int64_t channel) {
    if (!s.bias_ptr) return V{};
    const int64_t row = s.bias_rows > 1 ? n * s.out : 0;
    return load_upto(static_cast<const float*>(s.bias_ptr) + row + channel, s.out - channel);
}

// the outputs of one tile for the channels of one panel from m: P Q rows, `step` floats apart, and `more`: those of the
// next tile come after it; paired: times `factor` and what takes back the scales of the panel's outputs
template <class Rows, class Columns>
static void write_tile(const Conv2d& s, const Tail& to, const Cut& cut, Phase phase, Place at, int64_t channel,
                       const float* m, int64_t step, bool more, float factor = 1, const float* back = nullptr) {
    constexpr int P = Rows::kPoints, Q = Columns::kPoints, M = Rows::kOutputs, N = Columns::kOutputs;
    const Tail tail = to;
    const int64_t rows = std::min<int64_t>(M, cut.oh - at.y), cols = std::min<int64_t>(N, cut.ow - at.x);
    const int64_t right = phase.step, down = phase.step * phase.step * cut.ow;  // pixels to the next output
    const auto first_pixel = [&](Place p) {
        return (p.n * cut.oh + p.y) * down + phase.y * right * cut.ow + p.x * right + phase.x;
    };
    const int64_t pixel = first_pixel(at), after = first_pixel(cut.next(at));
    for (int64_t i = 0; i < M && more; ++i)  // others may be another thread's
        for (int64_t j = 0; j < N; ++j) tail.expect(after + i * down + j * right, channel);
    for (int64_t c = channel; c < std::min(channel + kPanel, s.out); c += kLanes, m += kLanes) {
        V half[M * Q];
        const auto column = [&](int j) __attribute__((always_inline)) {
            V t[P], y[M];
#pragma GCC unroll 6
            for (int i = 0; i < P; ++i) {
                t[i] = load(m + (i * Q + j) * step);
                prefetch(m + (i * Q + j) * step + kPanel);  // of the next tile
            }
            Rows::output(t, y);
#pragma GCC unroll 4
            for (int i = 0; i < M; ++i) half[i * Q + j] = y[i];
        };
        if constexpr (Q > 6) {
#pragma GCC unroll 1
            for (int j = 0; j < Q; ++j) column(j);
        } else {
#pragma GCC unroll 6
            for (int j = 0; j < Q; ++j) column(j);
        }
        const V bias = bias_at(s, at.n, c), factors = back ? set1(factor) * load(back + c - channel) : set1(1);
        const int64_t left = s.out - c;
        if (rows == M && cols == N && left >= kLanes) {
            const auto row = [&](int i) __attribute__((always_inline)) {
                V line[N];
                Columns::output(half + i * Q, line);
#pragma GCC unroll 8
                for (int j = 0; j < N; ++j)
                    tail.finish(line[j], bias, pixel + i * down + j * right, c, kLanes, factors);
            };
            if constexpr (Q > 6) {
#pragma GCC unroll 1
                for (int i = 0; i < M; ++i) row(i);
            } else {
#pragma GCC unroll 4
                for (int i = 0; i < M; ++i) row(i);
            }
        } else {
            for (int i = 0; i < rows; ++i) {
                V line[N];
                Columns::output(half + i * Q, line);
                for (int j = 0; j < cols; ++j)
                    tail.finish(line[j], bias, pixel + i * down + j * right, c, left, factors);
            }
        }
    }
}

// asks for what `few` rows of outputs from pixel p on will need
static EDM_INLINE void expect_rows(const Tail& tail, int64_t p, int few, int64_t panel) {
    for (int r = 0; r < few; ++r) tail.expect(p + r, panel * kPanel);
}

// bias, residual and scale for `few` rows c (few, kPanel) of outputs from pixel p on, of the `images`; perhaps factors
// of the rows (few) and of the columns (kPanel)
static void write_rows(const Conv2d& s, const Tail& to, const int64_t* images, int64_t p, int few, int64_t panel,
                       const float* c, const float* row_factors = nullptr, const float* column_factors = nullptr) {
    const Tail tail = to;
    for (int r = 0; r < few; ++r, c += kPanel)
        for (int64_t j = 0, k = panel * kPanel; j < kPanel && k < s.out; j += kLanes, k += kLanes) {
            const V factor = row_factors ? load(column_factors + j) * set1(row_factors[r]) : set1(1);
            tail.finish(load(c + j), bias_at(s, images[r], k), p + r, k, s.out - k, factor);
        }
}
EDM_END
